"""The one kind of error that is the user's to mend."""


class InputError(ValueError):
    """What was given cannot be used. The message is one line: what is wrong and what would be right.

    The command line prints that line and ends with exit status 2; anything else that is raised is a bug of ours.
    """
