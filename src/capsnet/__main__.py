"""Where the `capsnet` command begins; `python -m capsnet` is the same."""

import os
import signal
import sys
from types import FrameType

import capsnet
from capsnet.streams import drop_unwritten, open_closed, output_lost


def main() -> int:
    """Answers `--version`, and hands on to `capsnet.cli`; returns the exit status."""
    open_closed()
    if sys.argv[1:] == ["--version"]:
        return _print_version()
    # PyTorch takes seconds to import. Ctrl-C in that time comes out of it as any error; so end without one.
    patient = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if patient:
        signal.signal(signal.SIGINT, _leave)
    from capsnet.cli import main as run

    if patient:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return run()


def _print_version() -> int:
    try:
        print(f"capsnet {capsnet.__version__}", flush=True)
    except OSError as error:
        return output_lost(error)
    finally:
        drop_unwritten()
    return 0


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, b"\ncapsnet: interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    sys.exit(main())
