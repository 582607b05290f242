"""Makes text with a user's values safe to print. Imports no torch."""

LONGEST = 200
"""Largest number of characters of a value that a message shows."""

LONGEST_ERROR = 4000
"""Largest number of characters of an exception's message that `error_text` returns."""


def printable(text: object, longest: int | None = None) -> str:
    """Return a value as text in one line, with all unprintable characters escaped.

    If `longest` is given, the text is first `shortened` to `longest` characters.
    """
    whole = str(text) if longest is None else shortened(str(text), longest)
    return whole if whole.isprintable() else "".join(map(_escaped, whole))


def shortened(text: str, longest: int) -> str:
    """Return a text; if it has more than `longest` characters, a note replaces its middle.

    The result then has `longest` characters of the text, and the note, which gives the text's
    length.
    """
    if len(text) <= longest:
        return text
    end = longest // 3
    return f"{text[: longest - end]} ...({len(text)} characters)... {text[-end:]}"


def error_text(error: BaseException) -> str:
    """Return the type and the message of an exception, even if its `__str__` fails."""
    try:
        message = str(error)
    except Exception as failure:
        message = f"(its message cannot be shown: {type(failure).__name__})"
    return f"{type(error).__name__}: {shortened(message, LONGEST_ERROR)}"


def lines(text: str) -> str:
    """Expand tabs in a text, and escape all other unprintable characters except line breaks."""
    return "\n".join(printable(line.expandtabs()) for line in text.split("\n"))


def _escaped(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()
