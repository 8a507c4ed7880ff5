"""Text from names of files, tables and configs, which may hold anything, for people to read."""

import re

_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, what turns the direction of writing, and bytes that are no text as Python has them in names."""


def printable(text: object) -> str:
    r"""The text with an escape for each character that is not for reading: `\x1b` where a terminal would obey.

    Every terminal, font and encoder takes what comes out; what is printable already stays as it is.
    """
    return _UNPRINTABLE.sub(_escape, str(text))


def _escape(found: re.Match[str]) -> str:
    if "\udc80" <= found[0] <= "\udcff":  # a byte that is no text
        return f"\\x{ord(found[0]) - 0xDC00:02x}"
    return found[0].encode("unicode_escape").decode()
