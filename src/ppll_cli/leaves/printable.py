"""Text that is safe to show, whatever a user's value contains. Imports no torch."""

LONGEST = 200
"""How many characters of a value a message shows."""


def printable(text: object, longest: int | None = None) -> str:
    """Return a text as one line, with control characters escaped.

    Args:
        text: The text.
        longest: If it has more characters than this, leave out its middle; None: show all.
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
