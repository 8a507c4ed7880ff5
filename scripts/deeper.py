"""How networks with hidden layers of capsules begin to learn: the table in docs/sizes.md.

    .venv/bin/python scripts/deeper.py

Narrow networks (32 channels, 8 types), three epochs of 5,000 training digits, seed 0; tested on 2,000 other training
digits, never on the test set. The last row starts its upper layers as if the capsules below them were one long.
"""

import torch

import capsnet
from capsnet.layers import ROUTED_LENGTH

TWO = ((8, 8, 3), (16, 8))
ROWS = [((), 1.0), (((8, 8, 3),), 1.0), (((16, 8),), 1.0), (TWO, 1.0), (TWO, ROUTED_LENGTH)]


def main() -> None:
    capsnet.tune_allocator()
    digits = capsnet.open_dataset("mnist")
    train, held_out = digits.select(slice(5000)), digits.select(slice(55_000, 57_000))
    print("| hidden_capsules | upper weights | parameters | training error by epoch | held-out error |")
    print("|---|---:|---:|---:|---:|")
    for hidden, scale in ROWS:
        torch.manual_seed(0)
        model = capsnet.CapsNet(
            *(train.image_shape, train.num_classes),
            **{"conv_channels": 32, "primary_types": 8, "decoder_hidden": (64, 128), "hidden_capsules": hidden},
        )
        with torch.no_grad():
            for layer in [*model.hidden, model.classes][1:]:
                layer.weight *= scale
        rows = capsnet.fit(model, train, capsnet.Recipe(epochs=3), progress=False)
        errors = ", ".join(f"{row['train_error']:.1f} %" for row in rows)
        count = sum(parameter.numel() for parameter in model.parameters())
        error = capsnet.evaluate(model, held_out).error
        print(f"| `{hidden}` | {scale:g} | {count:,} | {errors} | {error:.1f} % |", flush=True)


if __name__ == "__main__":
    main()
