"""A tiny network, and how the tests train it."""

import contextlib
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch

import capsnet
from capsnet import runs
from capsnet.data import PairSet

QUICK = {"epochs": 3, "batch_size": 16, "max_shift": 1}


def small(seed=0, in_shape=(1, 28, 28), **sizes):
    torch.manual_seed(seed)
    sizes = {"conv_channels": 16, "primary_types": 4, "decoder_hidden": (32, 64), **sizes}
    return capsnet.CapsNet(in_shape, 10, **sizes)


def fit(model, digits, recipe=None, **options):
    return capsnet.fit(model, digits, recipe or capsnet.Recipe(**QUICK), device="cpu", progress=False, **options)


def weights(path):
    """Their bytes, without the name of the config that they belong to."""
    return safetensors.torch.save(safetensors.torch.load_file(path / runs.WEIGHTS))


def patched(owner, name, value):
    patch = pytest.MonkeyPatch()
    patch.setattr(owner, name, value)
    return contextlib.closing(SimpleNamespace(close=patch.undo))


class PullThePlug(BaseException):
    """As sudden as a test can be inside its own process; `test_cli.py` uses kill -9."""


def pairs_of(digits, count=64):
    return PairSet(digits, count, max_shift=1)


def small_for_pairs(seed=0):
    return small(seed, in_shape=(1, 30, 30))
