"""Standard output, which holds results, and standard error, where nothing fails because nobody reads it.

A terminal is closed, a pipe's reader ends, a log's disk is full, a stream was never open: what is said on the way is
dropped then, and the work goes on. A result that cannot be written is an error.
"""

import contextlib
import errno
import io
import os
import sys
from typing import Any

from capsnet.text import printable

READER_GONE = 141
"""The exit status where the reader of our results has gone: that of programs which SIGPIPE ends, as a shell has it."""


def tell(line: str, end: str = "\n") -> None:
    """A line on standard error, printable, if it can be written."""
    _write_if_possible(sys.stderr, f"{printable(line)}{end}")


def progress_console(**options: Any) -> Any:
    """Rich's console on standard error, which writes as `tell` does."""
    from rich.console import Console

    return Console(file=_StandardError(), highlight=False, **options)  # pyright: ignore[reportArgumentType]


class _StandardError(io.TextIOBase):
    """What cannot be written is dropped."""

    def __init__(self) -> None:
        # While one is shown it takes the stream's place, so that what others write appears above it.
        self._stream: Any = getattr(sys.stderr, "rich_proxied_file", sys.stderr)

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def write(self, text: str) -> int:
        _write_if_possible(self._stream, text)
        return len(text)


class _ClosedOutput(io.TextIOBase):
    """Standard output in a process that was started without one; Python would drop results in silence."""

    def write(self, text: str) -> int:
        raise OSError(errno.EBADF, "standard output is closed")


def open_closed() -> None:
    """Stand-ins for standard streams that were closed when this process was started, as `>&-` has it in a shell.

    Their numbers are taken too: the next file that is opened would get them, and what a library of C has to say would
    be written into it.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    if sys.stdout is None:
        sys.stdout = _ClosedOutput()
    if sys.stderr is None:
        sys.stderr = _StandardError()


def output_lost(error: OSError) -> int:
    """Says why results, or another file, could not be written; returns the exit status."""
    if isinstance(error, BrokenPipeError):  # as in `capsnet … | head -1`, whose reader has what it wanted
        return READER_GONE
    tell(f"capsnet: {error.strerror or error}{f': {error.filename}' if error.filename else ''}")
    return 2


def drop_unwritten() -> None:
    """What is still to be written has nowhere to go; Python would complain of it once more when it ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())


def _write_if_possible(stream: Any, text: str) -> None:
    if stream is None:
        return
    # RuntimeError: a signal's handler speaks while the program is in the middle of a line.
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        stream.write(text)
        stream.flush()
