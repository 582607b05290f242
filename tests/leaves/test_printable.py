"""Values of users are safe to print."""

import pytest

from ppll_cli.errors import ConfigError
from ppll_cli.leaves.printable import error_text, lines, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("r\u00e9sum\u00e9 \u2588", "r\u00e9sum\u00e9 \u2588"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("two\nlines\t\r\x07\x9b", r"two\nlines\t\r\x07\x9b"),
        ("\u202egnirts\u2028", r"\u202egnirts\u2028"),
        ("name-\udcff", r"name-\udcff"),
    ],
)
def test_control_characters_are_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert shown.encode()


def test_lines_keeps_line_breaks() -> None:
    assert lines("a\n\tb \x1b[2J\n") == "a\n        b \\x1b[2J\n"


def test_a_long_text_is_shortened_in_its_middle() -> None:
    shown = printable("a" + 5000 * "\n" + "z", 90)
    assert shown.startswith(r"a\n")
    assert shown.endswith(r"\nz")
    assert "(5002 characters)" in shown
    assert len(shown) < 220


class BrokenError(Exception):
    """An exception of a user whose message cannot be shown."""

    def __str__(self) -> str:
        raise LookupError


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("two\nlines"), "ValueError: two\nlines"),
        (BrokenError(), "BrokenError: (its message cannot be shown: LookupError)"),
    ],
)
def test_any_exception_has_a_text(error: Exception, text: str) -> None:
    assert error_text(error) == text


def test_a_long_message_of_an_exception_is_shortened() -> None:
    assert len(error_text(ValueError(100_000 * "x"))) < 5000


def test_a_config_error_is_one_short_line_for_any_value() -> None:
    long = 5000 * "\x1b]0;title\x07\n"
    message = str(ConfigError(long, long, long, long))
    assert message.isprintable()
    assert len(message) < 10_000
    assert len(str(ConfigError("key", 5000 * "x", "is too long"))) < 300
