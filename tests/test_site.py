"""The site that `scripts/docs` builds has every page, picture and class."""

import json
import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SITE = (ROOT / "mkdocs.yml").read_text()
GALLERY = (DOCS / "gallery.md").read_text()
PAGES = {str(path.relative_to(DOCS)): path.read_text() for path in DOCS.rglob("*.md")}
REFERENCE = [
    (page, name)
    for page, text in PAGES.items()
    for name in re.findall(r"^::: ppll_cli\.(\S+)$", text, re.MULTILINE)
]


def test_the_reference_lists_names() -> None:
    assert len(REFERENCE) >= 20


def test_every_page_is_once_in_the_navigation() -> None:
    nav = re.findall(r"^ +- .+: (\S+\.md)$", SITE[SITE.index("\nnav:") :], re.MULTILINE)
    assert sorted(nav) == sorted(PAGES)


def test_the_gallery_shows_every_picture_above_its_command() -> None:
    shown = re.findall(r"^!\[[^]]+\]\(pictures/(\S+)\)$(.*?)(?=^!|^#|\Z)", GALLERY, re.M | re.S)
    pictures = [path.name for path in (DOCS / "pictures").iterdir()]
    assert sorted(name for name, _ in shown) == sorted(pictures)
    for name, below in shown:
        assert re.search(r"^\$ scripts/", below, re.MULTILINE), name


def test_the_gallery_has_the_same_commands_as_other_pages() -> None:
    """The command of the detector's picture is in the benchmark that trained it."""
    rows = json.loads((DOCS / "benchmarks" / "beyond.json").read_text())["rows"]
    given = {*rows["detection fba on 4 trained"]["overrides"]}
    commands = re.findall(r"^\$ (.+)$", GALLERY, re.MULTILINE)
    others = [text for page, text in PAGES.items() if page != "gallery.md"]
    made_here = [command for command in commands if not any(command in text for text in others)]
    (detector,) = (command.removeprefix("scripts/run ") for command in made_here)
    assert {*detector.split()} == given - {"transport=ring"}  # it is the default


@pytest.mark.parametrize(("page", "name"), REFERENCE)
def test_the_reference_names_existing_objects(page: str, name: str) -> None:
    """A name is a module, or a part of a module.

    The page also names the file, for other viewers.
    """
    *folders, last = f"ppll_cli.{name}".split(".")
    try:
        module = import_module(f"ppll_cli.{name}")
    except ModuleNotFoundError:
        module = import_module(".".join(folders))
        assert last in vars(module)
    file = Path(module.__file__ or "")
    assert f"`{file.relative_to(ROOT)}`" in PAGES[page] or f"`{file.name}`" in PAGES[page]


def test_the_reference_lists_what_examples_import() -> None:
    """The reference lists each class and function that an example in the pages imports."""
    known = {name for _, name in REFERENCE}
    last = {name.rpartition(".")[2] for name in known}
    imports = [
        (module, name)
        for text in PAGES.values()
        for module, names in re.findall(r"^from ppll_cli\.(\S+) import (.+)$", text, re.MULTILINE)
        for name in names.split(", ")
    ]
    assert len(imports) > 10
    assert [name for module, name in imports if module not in known and name not in last] == []


def test_the_sites_search_needs_no_network() -> None:
    """Without a script of this name, the plugin `offline` would load one from the network."""
    (script,) = re.findall(r"^ +polyfills: \[(\S+)\]", SITE, re.MULTILINE)
    assert "iframe-worker" in script
    assert (DOCS / script).is_file()
    assert re.search(r"^ +font: false", SITE, re.MULTILINE)
