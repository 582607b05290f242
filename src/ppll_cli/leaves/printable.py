"""Makes text with a user's values safe to print. Imports no torch."""

LONGEST = 200
"""Largest number of characters of a value that a message shows."""


def printable(text: object, longest: int | None = None) -> str:
    """Return a text as one line, with control characters escaped.

    If the text has more than `longest` characters, its middle is left out.
    """
    whole = str(text)
    if longest is not None and len(whole) > longest:
        end = longest // 3
        left_out = f" ...({len(whole)} characters)... "
        return printable(whole[: longest - end]) + left_out + printable(whole[-end:])
    return whole if whole.isprintable() else "".join(map(_escaped, whole))


def lines(text: str) -> str:
    """Return a text of several lines, with other control characters escaped and tabs expanded."""
    return "\n".join(printable(line.expandtabs()) for line in text.split("\n"))


def _escaped(sign: str) -> str:
    return sign if sign.isprintable() else sign.encode("unicode_escape").decode()
