"""Text that is safe to show, whatever a user's value has in it. Imports nothing heavy."""

LONGEST = 200
"""Characters of a value that a message shows."""


def printable(text: object, longest: int | None = None) -> str:
    """A text in one line, without anything that a terminal would obey.

    Args:
        text: What is shown.
        longest: Shorten what has more characters than this, in its middle; None: never.
    """
    whole = str(text)
    if longest is not None and len(whole) > longest:
        end = longest // 3
        left_out = f" ...({len(whole)} characters)... "
        return printable(whole[: longest - end]) + left_out + printable(whole[-end:])
    return whole if whole.isprintable() else "".join(map(_escaped, whole))


def lines(text: str) -> str:
    """A text of several lines, without anything else that a terminal would obey."""
    return "\n".join(printable(line.expandtabs()) for line in text.split("\n"))


def _escaped(sign: str) -> str:
    return sign if sign.isprintable() else sign.encode("unicode_escape").decode()
