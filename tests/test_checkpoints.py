"""A checkpoint needs little more memory than it is large, and is believed only as far as it can be checked."""

import io
import tracemalloc
from unittest.mock import patch

import pytest
import torch

import capsnet
from capsnet import callbacks, runs
from capsnet.batches import Batches
from capsnet.callbacks import Checkpoints
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


RECIPE = capsnet.Recipe(epochs=2, batch_size=4, max_shift=0)
SET = capsnet.ImageSet(
    torch.randint(0, 256, (8, 1, 17, 17), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
    torch.arange(8) % 2,
    ("a", "b"),
)


def small():
    torch.manual_seed(0)
    return capsnet.CapsNet((1, 17, 17), 2, conv_channels=4, primary_types=2, decoder_hidden=(8,))


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run folder as it is after the third of four steps."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    save = Checkpoints._save

    def save_and_stop(self, trainer, pl_module):
        save(self, trainer, pl_module)
        if trainer.global_step == 3:
            self._stop(trainer)

    with (
        patch.object(callbacks, "CHECKPOINT_SECONDS", 0.0),
        patch.object(Checkpoints, "_save", save_and_stop),
        pytest.raises(KeyboardInterrupt),
    ):
        capsnet.fit(small(), SET, RECIPE, out=folder, progress=False, device="cpu")
    return folder


def put(value, *path):
    def change(state):
        for key in path[:-1]:
            state = state[key]
        state[path[-1]] = value

    return change


def drop(*path):
    def change(state):
        for key in path[:-1]:
            state = state[key]
        del state[path[-1]]

    return change


ROWS, SUMS = ("callbacks", "Recorder", "rows"), ("callbacks", "Recorder", "sums")
ADAM = ("optimizer_states", 0)
BATCHES = ("loops", "fit_loop", "epoch_loop.batch_progress", "current")


@pytest.mark.parametrize(
    "change",
    [
        *(drop(key) for key in ("state_dict", "loops", "callbacks", "optimizer_states", "lr_schedulers")),
        *(
            put(value, key)
            for key in ("state_dict", "loops", "callbacks", "optimizer_states")
            for value in (None, [], 7)
        ),
        put(torch.full((4, 1, 9, 9), torch.nan), "state_dict", "model.conv.weight"),
        put(torch.zeros(3), "state_dict", "model.conv.weight"),
        *(put(value, *ROWS) for value in ([], None, [{}], [{"epoch": 1, "loss_mean": "x"}], [{"epoch": 2}])),
        *(put(value, *ROWS, 0, "seconds") for value in (float("nan"), "x", [])),
        *(put(value, *SUMS) for value in (None, {"images": 4}, {"images": torch.tensor([4.0, 4.0])})),
        *(put(value, *SUMS, "images") for value in (torch.tensor(-4), torch.tensor(torch.inf), "x")),
        *(put(value, "callbacks", "Recorder", "seconds") for value in (-1.0, None, float("inf"))),
        *(put(value, *ADAM, "state", 0, "step") for value in ("x", torch.tensor([1.0, 2.0]))),
        *(
            put(value, *ADAM, "state", 0, "exp_avg")
            for value in (torch.zeros(3), torch.zeros(1).expand(9, 1, 9, 4), None)
        ),
        *(put(value, *BATCHES, "ready") for value in (-5, 10**9, "x", 2.5)),
        *(put(value, "loops", "fit_loop", "epoch_progress", "current", "processed") for value in (-1, 7, None)),
        *(put(value, "lr_schedulers", 0, "last_epoch") for value in ("x", None, [])),
    ],
)
def test_what_was_sealed_with_other_content_is_refused_in_one_line(interrupted, change):
    """A SHA-256 has no key: whoever changes a checkpoint can seal it. It is not believed for that."""
    path = interrupted / runs.CHECKPOINT
    content = path.read_bytes()
    state = torch.load(io.BytesIO(content), weights_only=True)
    change(state)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    path.write_bytes(seal(buffer.getvalue()))
    try:
        with pytest.raises(capsnet.InputError) as told:
            capsnet.fit(small(), SET, RECIPE, out=interrupted, resume=True, progress=False, device="cpu")
        assert len(str(told.value).splitlines()) == 1
        assert not (interrupted / runs.WEIGHTS).exists()
    finally:
        path.write_bytes(content)
        (interrupted / runs.WEIGHTS).unlink(missing_ok=True)


def test_what_fails_before_anything_was_kept_does_not_block_the_folder(tmp_path):
    folder = tmp_path / "run"

    def broken(self, epoch, step):
        raise error

    for error in (capsnet.InputError("no"), RuntimeError("no"), OverflowError("no")):
        with patch.object(Batches, "train_batch", broken), pytest.raises(type(error), match="no"):
            capsnet.fit(small(), SET, RECIPE, out=folder, progress=False, device="cpu")
        assert not list(folder.iterdir())
    with pytest.raises(capsnet.InputError, match="a shift by 17 pixels leaves nothing"):
        capsnet.fit(small(), SET, capsnet.Recipe(max_shift=17), out=folder, progress=False)
    capsnet.fit(small(), SET, RECIPE, out=folder, progress=False, device="cpu")
    assert (folder / runs.WEIGHTS).exists()
