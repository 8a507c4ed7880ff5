"""Which signals ask a program to end."""

import signal

HANGUP: int | None = getattr(signal, "SIGHUP", None)
"""The terminal is gone; None on Windows."""


def ending_signals() -> list[int]:
    """SIGTERM and SIGHUP; without the latter where it is ignored, as `nohup` has it."""
    if HANGUP is None or signal.getsignal(HANGUP) is signal.SIG_IGN:
        return [signal.SIGTERM]
    return [signal.SIGTERM, HANGUP]
