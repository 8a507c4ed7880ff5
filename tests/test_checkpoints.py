"""A checkpoint needs little more memory than it is large."""

import tracemalloc

import torch

from capsnet.checkpoints import SafeCheckpointIO, is_sealed, seal


def test_a_checkpoint_is_sealed_and_written_where_it_lies(tmp_path):
    path, storage = tmp_path / "last.ckpt", SafeCheckpointIO("this run")
    weights = torch.randn(4_000_000)
    tracemalloc.start()
    storage.save_checkpoint({"weights": weights, "fingerprint": "this run"}, path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.5 * 4 * len(weights)
    assert storage.load_checkpoint(path)["weights"].equal(weights)
    content = path.read_bytes()
    assert is_sealed(content)
    assert not is_sealed(content[:-1] + b"x")
    assert seal(content[:-66] + b"\0\0") == content
