"""What the documentation says is true of the code: files, links, commands, options, settings, exit codes, examples."""

from __future__ import annotations

import re
import shlex
import textwrap
from pathlib import Path
from unittest import mock

import grimp
import pytest

from unscanned import errors
from unscanned.cli import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
VERBS = sorted(name for name in app if not name.startswith("-"))
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in one language, without their indentation."""
    found = _FENCE.finditer(page.read_text(encoding="utf-8"))
    return [textwrap.dedent(match["text"]) for match in found if match["language"] == language]


def tree() -> list[str]:
    """The paths in the README's tree, in its order, relative to the repository."""
    [text] = [block for block in blocks(ROOT / "README.md", "") if "src/unscanned/" in block]
    paths, folders = [], {}
    for line in text.splitlines():
        depth = len(line) - len(line.lstrip())
        above = "".join(name for level, name in sorted(folders.items()) if level < depth)
        name = line.split()[0]
        paths.append(above + name)
        folders = {level: folder for level, folder in folders.items() if level < depth}
        if name.endswith("/"):
            folders[depth] = name
    return paths


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page: Path) -> list[str]:
    """The lines of a page's shell blocks that call unscanned."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("unscanned ")]


def test_every_path_in_the_tree_of_the_readme_exists():
    assert [path for path in tree() if not (ROOT / path).exists()] == []


def test_every_module_stands_in_the_tree_of_the_readme():
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "src").rglob("*.py") if path.name != "__init__.py"}
    assert sorted(modules.difference(tree())) == []


def test_a_module_imports_only_what_stands_below_it_in_the_tree_of_the_readme():
    graph = grimp.build_graph("unscanned", cache_dir=None)
    files = [path for path in tree() if path.startswith("src/") and path.endswith(".py")]
    order = [path.removeprefix("src/").removesuffix(".py").replace("/", ".") for path in files]
    upwards = [
        f"{module} imports {imported}"
        for number, module in enumerate(order)
        for imported in graph.find_modules_directly_imported_by(module)
        if imported in order[:number]
    ]
    assert upwards == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_link_of_a_page_leads_somewhere(page):
    broken = []
    for match in _LINK.finditer(page.read_text(encoding="utf-8")):
        if match["target"].startswith(("https://", "http://")):
            continue
        name, _, anchor = match["target"].partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(match["target"])
    assert broken == []


def test_every_verb_has_an_example_in_the_pages():
    shown = {line.split()[1] for page in PAGES for line in commands(page)}
    assert sorted(set(VERBS) - shown) == []


@pytest.mark.parametrize("line", sorted({line for page in PAGES for line in commands(page)}))
def test_every_command_in_the_pages_is_understood(line):
    words = shlex.split(line, comments=True)[1:]
    app.parse_args(words, exit_on_error=False, print_error=False)


def test_the_reference_of_settings_is_that_of_the_code(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    from settings_reference import PAGE, reference

    assert PAGE.read_text(encoding="utf-8") == reference(), "run python tools/settings_reference.py"


def test_the_table_of_exit_codes_is_that_of_the_errors():
    page = (ROOT / "docs" / "exit-codes.md").read_text(encoding="utf-8")
    rows = {(name, int(code)) for code, name in re.findall(r"^\| (\d+) \| `(\w+)` \|", page, re.MULTILINE)}
    known = {(name, getattr(errors, name).exit_code) for name in errors.__all__ if name != "UnscannedError"}
    assert rows == known | {("Interrupted", 143)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["docs/python.md", "CONTRIBUTING.md"])
def test_the_python_examples_of_a_page_run(name, tmp_path, monkeypatch):
    from unscanned.evaluation.metrics import METRICS
    from unscanned.models import discriminators, generators

    monkeypatch.chdir(tmp_path)
    for module, registry in ((generators, "GENERATORS"), (discriminators, "DISCRIMINATORS")):
        monkeypatch.setattr(module, registry, dict(getattr(module, registry)))
    examples = blocks(ROOT / name, "python")
    assert len(examples) >= 4
    namespace: dict[str, object] = {"__name__": "example"}
    with mock.patch.dict(METRICS):
        for number, example in enumerate(examples, 1):
            exec(compile(example, f"{name}, block {number}", "exec"), namespace)
