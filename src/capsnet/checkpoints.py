"""`last.ckpt`: written whole or not at all, and read only if it is this very run's and as it was written."""

import hashlib
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from capsnet.disk import read_file
from capsnet.errors import InputError
from capsnet.runs import write_atomically

DIGITS = 64
"""Length of a SHA-256 in hexadecimal digits."""


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints whole or not at all; reads only this very run's, without executing anything they contain.

    A checkpoint is a ZIP file, and the file's comment the SHA-256 of all that comes before it. So what a disk or an
    editor has changed is refused before anything looks into it. `broadcast` gives every process what the first one has
    read: the others need not see the file.
    """

    def __init__(self, fingerprint: str) -> None:
        super().__init__()
        self.fingerprint = fingerprint
        self.broadcast: Callable[[bytes | None], bytes | None] = lambda content: content

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        _seal(buffer)
        write_atomically(Path(path), buffer.getbuffer())

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        try:
            content = read_file(path)
        except OSError:
            content = None
        content = self.broadcast(content)
        if content is None or not is_sealed(content):
            raise InputError(f"{path} is damaged or no checkpoint; remove it to start the run anew")
        try:
            checkpoint = torch.load(io.BytesIO(content), map_location=map_location, weights_only=True)
        except Exception:  # torch.load raises nearly every kind on foreign files, with advice that we do not share
            raise InputError(f"{path} is damaged or no checkpoint; remove it to start the run anew") from None
        if not isinstance(checkpoint, dict) or checkpoint.get("fingerprint") != self.fingerprint:
            raise InputError(f"{path} is the checkpoint of another run: model, recipe or training images differ")
        if not all(_are_finite(part) for name, part in checkpoint.items() if name != "optimizer_states"):
            raise InputError(f"{path} is damaged: it holds numbers that are not finite")
        return checkpoint


def _are_finite(tree: Any) -> bool:
    """Of an optimizer's states that is not asked: a large gradient squared may be infinite, and training goes on."""
    if isinstance(tree, dict | list | tuple):
        return all(map(_are_finite, tree.values() if isinstance(tree, dict) else tree))
    if isinstance(tree, torch.Tensor):
        return bool(tree.isfinite().all())
    return not isinstance(tree, float) or math.isfinite(tree)


def seal(archive: bytes) -> bytes:
    """A ZIP file without a comment gets its SHA-256 as one. The last two bytes are the comment's length."""
    buffer = io.BytesIO(archive)
    _seal(buffer)
    return buffer.getvalue()


def _seal(archive: io.BytesIO) -> None:
    """Where it lies: a large model's checkpoint is most of the memory there is, and none for copies."""
    with archive.getbuffer() as body:
        body[-2:] = DIGITS.to_bytes(2, "little")
        digest = hashlib.sha256(body).hexdigest()
    archive.seek(0, io.SEEK_END)
    archive.write(digest.encode())


def is_sealed(content: bytes) -> bool:
    body, comment = memoryview(content)[:-DIGITS], content[-DIGITS:]
    return hashlib.sha256(body).hexdigest().encode() == comment
