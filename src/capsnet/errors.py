"""What can go wrong that is not a bug."""


class InputError(ValueError):
    """What was given cannot be used. The message is one line: what is wrong and what would be right.

    The command line prints that line and ends with exit status 2; anything else that is raised is a bug of ours.
    """


class MissingSplitError(InputError):
    """The set is there, but has no pictures for this purpose."""


def gist(error: Exception) -> str:
    """What an error of somebody else's says, in one line: its first one that is not empty, or its name."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


class ProcessLostError(RuntimeError):
    """Of several processes that trained together, another one has ended. The message is one line; exit status 1."""
