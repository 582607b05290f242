"""README and the pages of docs/ stay true: the commands and examples that they show work."""

import re
import shlex
from contextlib import chdir
from pathlib import Path

import pytest

from ppll_cli.cli import compare, evaluate, plan
from ppll_cli.cli.evaluate import FREE
from ppll_cli.config import settings
from ppll_cli.errors import ConfigError
from scripts.benchmarks.__main__ import NAMES
from tests.conftest import compose_config
from tests.program import ppll_run

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
FILE = re.compile(r"^`([\w./]+)`:\n\n```(?:python|yaml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ (?:scripts/run|ppll-run)(.*)$", re.MULTILINE)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
OWN = "--config-dir="
"""Commands with this option need the files of an example of the page."""


def sections(page: str) -> dict[str, str]:
    parts = re.split(r"^## (.+)$", (DOCS / page).read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


METHOD, LANGUAGE = "A method of your own", "A language model"
TRANSFORMS = "Transforms of your own"
EXTENSIONS = sections("extend.md") | sections("watching.md") | sections("language_model.md")
EXTENSIONS |= {METHOD: sections("local_learning.md")[METHOD]}
EXTENSIONS |= {TRANSFORMS: sections("data.md")[TRANSFORMS]}
SLOW = ["A model", METHOD, LANGUAGE]
"""Examples that only slow tests train. Most tests of own models and methods have similar classes.

`tests/launch/test_language_model.py` trains the language model for a few steps.
"""


def test_the_page_has_an_example_of_each_extension() -> None:
    watching = "A local method that watches a later unit"
    own = ["A model", "A data set", "A schedule", watching, LANGUAGE, METHOD, TRANSFORMS]
    assert list(EXTENSIONS) == own


@pytest.mark.parametrize("steps", [2, pytest.param(None, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "section",
    [pytest.param(s, marks=[pytest.mark.slow] * (s in SLOW)) for s in EXTENSIONS],
)
def test_every_example_of_an_extension_trains(
    tmp_path: Path, section: str, steps: int | None
) -> None:
    """It trains for a few steps, or, in a slow test, to the end."""
    text = EXTENSIONS[section]
    files = FILE.findall(text)
    assert len(files) == (3 if section == LANGUAGE else 2)
    for name, content in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    (command,) = COMMAND.findall(text)
    result = ppll_run(
        *shlex.split(command),
        *("device=cpu", "threads=1", "timeline=false"),
        *([] if steps is None else [f"max_steps={steps}", "data.eval_limit=8"]),
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert "samples could be written" not in result.stderr  # a user's field may have this name
    *_, completed, last = result.stdout.splitlines()
    assert completed.startswith("completed after ")
    metric, value = last.split()[1:3]
    if steps is not None:
        assert completed.startswith(f"completed after {steps} steps")
        return
    if metric == "perplexity":
        assert 1 < float(value) < 16
    else:
        assert float(value) > {"A data set": 0.9, TRANSFORMS: 0.9}.get(section, 0.2)


COMMANDS = [
    (page.name, command)
    for page in PAGES
    for command in sorted(set(COMMAND.findall(page.read_text())))
    if OWN not in command
]


def test_commands_are_found_in_the_pages() -> None:
    assert len(COMMANDS) >= 7
    assert len(COMPARISONS) >= 3


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_commands_have_valid_settings(page: str, command: str) -> None:
    """In a sweep, every value of every list is composed."""
    words = [word for word in shlex.split(command, comments=True) if not word.startswith("-")]
    words = [word for word in words if not word.startswith(("resume=", "hydra/", "hydra."))]
    words = [word for word in words if "(" not in word]  # of a sweeper that is not installed
    for choice in range(max(word.count(",") + 1 for word in [*words, ""])):
        overrides = [_chosen(word, choice) for word in words]
        settings.parse(compose_config(overrides)[0])


PLANS = [
    (page.name, command)
    for page in PAGES
    for command in re.findall(r"^\$ (?:\.venv/bin/)?ppll-plan(.*)$", page.read_text(), re.MULTILINE)
]


@pytest.mark.parametrize(("page", "command"), PLANS)
def test_plan_commands_have_valid_settings(page: str, command: str) -> None:
    options = plan._options(shlex.split(command))
    assert len(plan.Plan.compose(options.overrides).gpus) > 1


EVALUATIONS = [
    command
    for page in PAGES
    for command in re.findall(r"^\$ (?:\.venv/bin/)?ppll-eval(.*)$", page.read_text(), re.MULTILINE)
]


@pytest.mark.parametrize("command", EVALUATIONS)
def test_evaluation_commands_have_valid_options(command: str) -> None:
    """Options are read as the program reads them.

    Overrides name keys that an evaluation may change.
    """
    words = shlex.split(command)
    given = [word for word in words if evaluate._is_override(word)]
    options = evaluate._options([word for word in words if word not in given])
    assert str(options.run_dir).startswith("outputs/")
    assert {word.split("=")[0].split(".")[0] for word in given} <= {*FREE}
    compose_config(given)


COMPARISONS = [
    command
    for page in PAGES
    for command in re.findall(
        r"^\$ (?:\.venv/bin/)?ppll-compare(.*)$", page.read_text(), re.MULTILINE
    )
]


@pytest.mark.parametrize("command", COMPARISONS)
def test_comparison_commands_have_valid_options(tmp_path: Path, command: str) -> None:
    """The command is right, except that its folders do not exist here."""
    with chdir(tmp_path), pytest.raises(ConfigError, match=r"outputs/.*: there is no such folder"):
        compare._main(shlex.split(command))


def _chosen(word: str, choice: int) -> str:
    key, _, values = word.partition("=")
    if values.startswith("["):
        return word
    listed = values.split(",")
    return f"{key}={listed[min(choice, len(listed) - 1)]}"


PROGRAMS = {"ppll-run", "ppll-plan", "ppll-compare", "ppll-eval", "tensorboard", "git", "eval"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_calls_an_existing_program(page: Path) -> None:
    """Commands of other programs would not be tested."""
    for command in re.findall(r"^\$ (.+)$", page.read_text(), re.MULTILINE):
        program, *arguments = shlex.split(command, comments=True)
        if program.startswith("scripts/"):
            assert (ROOT / program).is_file(), command
            if program == "scripts/benchmark":
                assert arguments[0] in NAMES, command
        else:
            assert program.removeprefix(".venv/bin/") in PROGRAMS, command


def test_the_table_of_benchmarks_is_complete() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", (DOCS / "benchmarks.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(NAMES)


def links(page: Path) -> list[str]:
    """Return the targets of a page's links and pictures, without links to other sites."""
    text = FENCED.sub("", page.read_text())
    return re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", text)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and GitLab make them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text()), re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", re.sub(r"\]\([^)]*\)", "", heading).lower())
        anchor, number = plain.replace(" ", "-"), 0
        while (name := f"{anchor}-{number}" if number else anchor) in found:
            number += 1
        found.add(name)
    return found


def test_headings_become_anchors(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A `b/c d`\n```\n# no\n```\n## What is [equal](x.md), bit-wise?\n## A bc d\n")
    assert anchors(page) == {"a-bc-d", "what-is-equal-bit-wise", "a-bc-d-1"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_have_existing_targets(page: Path) -> None:
    """A link leads to a file, a folder, a picture, or a heading of this or another page."""
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        assert target.is_relative_to(ROOT), f"{page.name}: {link} leaves the repository"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


def test_pages_are_short_and_linked_from_readme() -> None:
    """Links lead from README to every page. A page of more than 200 lines should be two pages."""
    seen: set[Path] = set()
    ahead = [ROOT / "README.md"]
    while ahead:
        page = ahead.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        ahead += [(page.parent / link.partition("#")[0]).resolve() for link in links(page)]
    assert set(PAGES) <= seen
    long = [page.name for page in PAGES if len(page.read_text().splitlines()) > 200]
    assert long == []


def test_messages_that_the_page_on_problems_explains_are_the_programs() -> None:
    """Numbers, keys and paths, which may come from variables, are not compared."""
    sources = "".join(file.read_text() for file in (ROOT / "src").rglob("*.py"))
    messages = re.sub(r'"\s*f?"', "", sources)  # join literals that continue on the next line
    page = (DOCS / "problems.md").read_text()
    shown = re.findall(r"^\| `([^`]+)`", page, re.MULTILINE)
    parts = [part.strip() for text in shown for part in re.split(r"\d+|\S*[=/]\S*|[:;]", text)]
    compared = [part for part in parts if len(part) > 11]
    assert len(compared) > 8
    assert [part for part in compared if part not in messages] == []
