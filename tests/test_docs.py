"""README and the pages of docs/ stay true: what they have the reader type works as it stands."""

import re
import shlex
from pathlib import Path

import pytest

from ppll_cli import settings
from ppll_cli.plan import Plan
from tests.conftest import compose_config
from tests.test_app import ppll_run

DOCS = Path(__file__).parents[1] / "docs"
PAGES = [DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))]
FILE = re.compile(r"^`([\w./]+)`:\n\n```(?:python|yaml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ (?:scripts/run|ppll-run)(.*)$", re.MULTILINE)


def sections(page: str) -> dict[str, str]:
    parts = re.split(r"^## (.+)$", (DOCS / page).read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


EXTENSIONS = sections("extend.md")


def test_there_is_an_example_of_each_thing() -> None:
    assert list(EXTENSIONS) == ["A model", "A data set", "A local method", "A schedule"]


@pytest.mark.parametrize("section", EXTENSIONS)
def test_an_example_of_ones_own_trains(tmp_path: Path, section: str) -> None:
    text = EXTENSIONS[section]
    files = FILE.findall(text)
    assert len(files) == 2
    for name, content in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    (command,) = COMMAND.findall(text)
    result = ppll_run(
        *shlex.split(command), "device=cpu", "threads=1", "timeline=false", cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    *_, completed, last = result.stdout.splitlines()
    assert completed.startswith("completed after ")
    accuracy = float(last.split()[2])
    assert accuracy > {"A data set": 0.9}.get(section, 0.2)


COMMANDS = [
    (page.name, command)
    for page in PAGES
    if page.name != "extend.md"  # whose options exist only there
    for command in sorted(set(COMMAND.findall(page.read_text())))
]


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 7


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_commands_compose(page: str, command: str) -> None:
    """Of a sweep, every value of every list."""
    words = [word for word in shlex.split(command, comments=True) if not word.startswith("-")]
    words = [word for word in words if not word.startswith(("resume=", "hydra/", "hydra."))]
    words = [word for word in words if "(" not in word]  # for a sweeper that is not installed
    for choice in range(max(word.count(",") + 1 for word in [*words, ""])):
        overrides = [_chosen(word, choice) for word in words]
        settings.parse(compose_config(overrides)[0])


PLANS = [
    (page.name, command)
    for page in PAGES
    for command in re.findall(r"^\$ \.venv/bin/ppll-plan(.*)$", page.read_text(), re.MULTILINE)
]


@pytest.mark.parametrize(("page", "command"), PLANS)
def test_plans_compose(page: str, command: str) -> None:
    words = shlex.split(command)
    plan = Plan.compose([word for word in words if not word.startswith("-")])
    assert len(plan.gpus) > 1


def _chosen(word: str, choice: int) -> str:
    key, _, values = word.partition("=")
    if values.startswith("["):
        return word
    listed = values.split(",")
    return f"{key}={listed[min(choice, len(listed) - 1)]}"


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
