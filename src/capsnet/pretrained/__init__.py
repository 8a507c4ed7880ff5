"""Small models that ship inside the package; `scripts/pack_pretrained.py` put them here, with what made them."""

from pathlib import Path

NAMES = ("mnist", "multimnist", "mnist-cnn", "faces", "faces-cnn")


def folder(name: str) -> Path:
    """The run folder of a model: `capsnet.load(pretrained.folder("mnist"))`. Raises `KeyError` for an unknown name."""
    if name not in NAMES:
        raise KeyError(name)
    return Path(__file__).with_name(name)
