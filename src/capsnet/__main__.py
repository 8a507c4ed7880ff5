"""Where the `capsnet` command begins; `python -m capsnet` is the same."""

import os
import signal
import sys
from types import FrameType

import capsnet


def main() -> int:
    """Answers `--version`, and hands on to `capsnet.cli`; returns the exit status."""
    if sys.argv[1:] == ["--version"]:
        print(f"capsnet {capsnet.__version__}")
        return 0
    # PyTorch takes seconds to import. Ctrl-C in that time comes out of it as any error; so end without one.
    patient = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if patient:
        signal.signal(signal.SIGINT, _leave)
    from capsnet.cli import main as run

    if patient:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return run()


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, b"\ncapsnet: interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    sys.exit(main())
