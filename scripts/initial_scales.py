"""How the scale of the first weights decides how training starts: the table in docs/architecture.md.

    .venv/bin/python scripts/initial_scales.py

One epoch of 7,000 training digits at batch 128, seed 0; tested on 2,000 other training digits, never on the test set.
"""

import torch

import capsnet

# (scale of PrimaryCaps beside 1/√fan-in, scale of the routing weights beside the package's, learning rate)
ROWS = [(1, 1, 1e-3), (7, 1, 1e-3), (20, 1, 1e-3), (50, 1, 1e-3), (20, 2, 1e-3), (20, 0.5, 1e-3), (20, 1, 2e-3)]


def main() -> None:
    capsnet.tune_allocator()
    digits = capsnet.open_dataset("mnist")
    train, held_out = digits.select(slice(7000)), digits.select(slice(55_000, 57_000))
    print(
        "| PrimaryCaps scale | routing scale | learning rate | training error | held-out error |\n|---|---|---|---|---|"
    )
    for primary, routing, rate in ROWS:
        torch.manual_seed(0)
        model = capsnet.CapsNet(train.image_shape, train.num_classes)
        with torch.no_grad():
            model.primary.conv.weight *= primary / 7  # the package's own scale is 7
            model.classes.weight *= routing
        recipe = capsnet.Recipe(epochs=1, learning_rate=rate, final_learning_rate=1e-4)
        row = capsnet.fit(model, train, recipe, progress=False)[-1]
        error = capsnet.evaluate(model, held_out).error
        print(f"| {primary} | {routing} | {rate} | {row['train_error']:.1f} % | {error:.1f} % |", flush=True)


if __name__ == "__main__":
    main()
