"""What the documentation says is true of the code: links, paths, commands, options, settings, messages, examples."""

from __future__ import annotations

import ast
import csv
import functools
import importlib
import re
import shlex
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from conftest import TINY

import unscanned
from unscanned import errors
from unscanned.cli import app
from unscanned.evaluation.statistics import compare

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "unscanned"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
VERBS = sorted(name for name in app if not name.startswith("-"))
SCORES = ROOT / "docs" / "experiments" / "scores"

each_page = pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")
_FILE = re.compile(r"[\w./-]+\.(?:py|toml|csv|md|json|txt)|[\w./-]+/")
_TABLE_KEY = re.compile(r"[a-z]\w*\.[a-z]\w*")
_NUMBER = re.compile(r"[+-]?\d+\.\d+")

OUTPUTS = re.compile(
    r"(\w*/)?(derivatives|sourcedata|code|runs?|synthetic|arms|evaluation|prepared|dataset|model|best|checkpoints|"
    r"tensorboard|stage-\d|fold-\d|dicom|nifti|mended|my-bids|my-scans)/.*"
    r"|(?:.*/)?(log\.jsonl|scans\.jsonl|summary\.csv|cohort\.json|settings\.(toml|json)|split\.json|models?\.json|card\.json|case\.json|scores\.csv|slices\.csv|mine\.toml|"
    r"evaluation\.json|reproduce\.json|benchmark(-gpu)?\.json|check\.json|dataset_description\.json|report\.html|sbom\.json)"
)
"Files and folders that the pages name and commands make."


def blocks(page: Path) -> Iterator[tuple[str, str, str]]:
    """Yield each fenced block of a page: its language, its text without indentation, and the page before it."""
    text = page.read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        yield match["language"], textwrap.dedent(match["text"]), text[: match.start()]


def prose(page: Path) -> str:
    """The page without its fenced blocks and comments."""
    return re.sub(r"<!--.*?-->", "", _FENCE.sub("", page.read_text(encoding="utf-8")), flags=re.DOTALL)


def spans(page: Path) -> list[str]:
    """What stands in code style within the page's sentences and tables, on one line."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


def commands(page: Path) -> list[str]:
    """The lines of a page's shell blocks, continued lines joined."""
    text = "\n".join(text for language, text, _ in blocks(page) if language == "bash")
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", _FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@functools.cache
def options() -> frozenset[str]:
    """Every option of every verb, with hyphens for underscores."""
    found = {"--help", "--version"}
    for verb in VERBS:
        for argument in app[verb].assemble_argument_collection():
            found.update(name.replace("_", "-") for name in argument.names)
    return frozenset(found)


@functools.cache
def settings() -> frozenset[str]:
    """Every setting, as table.key, and every table."""
    return frozenset(name.removeprefix("--").replace("-", "_") for name in options() if "." in name)


def is_path(text: str) -> bool:
    """Whether a path in code style exists: below the package, the repository, its docs or its tests."""
    return any((place / text).exists() for place in (PACKAGE, ROOT, ROOT / "docs", ROOT / "tests"))


def definitions(path: Path) -> set[str]:
    """The names that a module defines, and those of its classes as Class.name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found.update(f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef))
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        found.update(target.id for target in targets if isinstance(target, ast.Name))
    return found


@each_page
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


def test_every_page_of_the_docs_is_linked_from_their_index_and_from_the_readme():
    pages = {page.name for kind in ("*.md", "*.ipynb") for page in (ROOT / "docs").glob(kind)} - {"index.md"}
    for place in (ROOT / "docs" / "index.md", ROOT / "README.md"):
        linked = {Path(target.partition("#")[0]).name for target in _LINK.findall(place.read_text(encoding="utf-8"))}
        assert sorted(pages - linked) == [], place


@each_page
def test_every_path_that_a_page_names_exists(page):
    named = {span.partition(":")[0] for span in spans(page)}
    files = {name for name in named if _FILE.fullmatch(name) and not OUTPUTS.fullmatch(name)}
    assert sorted(name for name in files if not is_path(name)) == []


@each_page
def test_every_part_of_a_module_that_a_page_names_is_defined_there(page):
    missing = []
    for span in spans(page):
        file, colon, name = span.partition(": ")
        if colon and file.endswith(".py"):
            [path] = [place / file for place in (PACKAGE, ROOT) if (place / file).exists()]
            if name not in definitions(path):
                missing.append(span)
    assert missing == []


@each_page
def test_every_module_that_a_page_names_in_full_can_be_imported(page):
    for name in {span.rstrip("()") for span in spans(page) if re.fullmatch(r"unscanned(\.\w+)+(\(\))?", span)}:
        found = unscanned
        for part in name.split(".")[1:]:
            if not hasattr(found, part):
                importlib.import_module(f"{found.__name__}.{part}")
            found = getattr(found, part)


def test_every_folder_of_the_package_stands_in_the_table_of_contributing():
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Set-up")[0]
    rows = {name for line in table.splitlines() if line.startswith("| `") for name in re.findall(r"`(\w+)/`", line)}
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert sorted(folders - rows - {"cli"}) == []


def test_every_verb_has_an_example_in_the_pages():
    shown = {line.split()[1] for page in PAGES for line in commands(page) if line.startswith("unscanned ")}
    assert sorted(set(VERBS) - shown) == []


@pytest.mark.parametrize("line", sorted({line for page in PAGES for line in commands(page)}))
def test_every_command_in_the_pages_is_understood(line):
    words = shlex.split(line, comments=True)
    if words[0] == "unscanned":
        app.parse_args(words[1:], exit_on_error=False, print_error=False)
    elif words[0] == "make":
        assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text(encoding="utf-8")
    elif words[0].endswith("python") and words[1].endswith(".py"):
        program = (ROOT / words[1]).read_text(encoding="utf-8")
        assert [word for word in words if word.startswith("--") and f'"{word}"' not in program] == []
    elif words[0].endswith("python"):
        assert words[1:3] == ["-m", "pytest"]
        assert is_path(words[3])
    else:
        assert words[0] in {"pip", "mkdir", "git", "dcm2niix", "sbatch", "source", "torchrun"}


@each_page
def test_every_option_and_verb_that_a_page_names_exists(page):
    unknown = []
    for span in spans(page):
        words = span.split()
        if words[0] == "unscanned" and len(words) > 1 and not words[1].startswith("-") and words[1] not in VERBS:
            unknown.append(span)
        if words[0] in {"unscanned", *VERBS} or words[0].startswith("--"):
            given = [re.match(r"--[\w.-]+", word) for word in words]
            unknown += [m[0] for m in given if m and m[0].replace("_", "-") not in options() | ELSEWHERE]
    assert unknown == []


ELSEWHERE = frozenset(
    {"--corpus", "--host", "--subjects", "--strides", "--precisions", "--loss.l2", "--generator.options.width"}
)
"Options that a page names in a sentence: of programs in studies/ and tests/, and of what CONTRIBUTING adds."


@each_page
def test_every_setting_that_a_page_names_exists(page):
    tables = {name.partition(".")[0] for name in settings()}
    named = {match for span in spans(page) for match in _TABLE_KEY.findall(span) if _TABLE_KEY.match(span)}
    named = {name for name in named if name.partition(".")[0] in tables and not is_path(name)}
    assert sorted(name for name in named if name not in settings() and not OUTPUTS.fullmatch(name)) == []


def test_the_reference_of_settings_is_that_of_the_code(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    from settings_reference import PAGE, reference

    assert PAGE.read_text(encoding="utf-8") == reference(), "run python tools/settings_reference.py"


def test_the_table_of_exit_codes_is_that_of_the_errors():
    page = (ROOT / "docs" / "exit-codes.md").read_text(encoding="utf-8")
    rows = {(name, int(code)) for code, name in re.findall(r"^\| (\d+) \| `(\w+)` \|", page, re.MULTILINE)}
    known = {(name, getattr(errors, name).exit_code) for name in errors.__all__ if name != "UnscannedError"}
    assert rows == known | {("Interrupted", 143)}


def test_every_message_that_troubleshooting_explains_is_one_of_the_code():
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    explained = re.findall(r"^### `(.+)`$", page, re.MULTILINE)
    texts = [
        node.value
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    assert len(explained) > 40
    assert [message for message in explained if not any(message in text for text in texts)] == []


def test_every_fault_of_reliability_has_the_tests_that_it_names():
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    named = re.findall(r"`([a-h]\d+_[^`]*)`", page)
    tests = [
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"def test_(\w+)", path.read_text(encoding="utf-8"))
    ]
    assert len(named) > 50
    missing = [
        name
        for name in named
        if not any(re.fullmatch(".*".join(map(re.escape, name.split("..."))), test) for test in tests)
    ]
    assert missing == []


def cells(line: str) -> list[str]:
    """The cells of a line of a Markdown table."""
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def score_tables() -> dict[str, dict[str, list[str]]]:
    """The rows of each table of docs/results.md by arm, by the name of the summary that is linked above it."""
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    found: dict[str, dict[str, list[str]]] = {}
    name = ""
    for line in page.splitlines():
        if link := re.search(r"scores/([\w-]+)-summary\.csv", line):
            name = link[1]
        elif line.startswith("| ") and name:
            found.setdefault(name, {})[cells(line)[0]] = cells(line)
        elif line.startswith("#"):
            name = ""
    for table in found.values():
        del table["arm"], table["---"]
    return found


def digits(number: str) -> int:
    """How many digits stand behind the point."""
    return len(number.partition(".")[2])


def test_the_tables_of_results_are_those_of_the_csv_files_beside_it():
    tables = score_tables()
    assert sorted(tables) == sorted(path.name.removesuffix("-summary.csv") for path in SCORES.glob("*-summary.csv"))
    for name, table in tables.items():
        with open(SCORES / f"{name}-summary.csv", encoding="utf-8", newline="") as file:
            rows = {(row["arm"], row["metric"]): row for row in csv.DictReader(file) if row["region"] == "head"}
        for arm, row in table.items():
            wanted = [
                number
                for metric in ("mae", "psnr", "ssim")
                for number in (rows[arm, metric][k] for k in ("mean", "sd"))
            ]
            gains = [value for key, value in rows[arm, "psnr"].items() if key.startswith("minus_") and value]
            found = [number.lstrip("+") for cell in row[4:] for number in _NUMBER.findall(cell)]
            for shown, number in zip(found, wanted + gains, strict=True):
                assert abs(float(shown) - float(number)) < 0.51 * 10.0 ** -digits(shown), (name, arm, shown, number)


def test_the_numbers_of_the_readme_are_those_of_results():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    [section] = re.findall(r"<!-- Results: begin.*?-->(.*)<!-- Results: end", text, re.DOTALL)
    rows = [row for table in score_tables().values() for row in table.values()]
    *lines, strong = [cells(line) for line in section.splitlines() if line.startswith("| ")][2:]
    assert len(lines) == 6
    with open(SCORES / "recipe-7200s-table.csv", encoding="utf-8", newline="") as file:
        table = {(row["variant"], row["metric"]): row for row in csv.DictReader(file)}
    shown = [  # gdl is the preset as it is
        f"{float(table['gdl', metric]['mean']):.{n}f} ({float(table['gdl', metric]['sd']):.{n}f})"
        for metric, n in (("mae", 3), ("psnr", 2), ("ssim", 3))
    ]
    with open(SCORES / "recipe-7200s.csv", encoding="utf-8", newline="") as file:
        scores = [(row["variant"], row["subject"], float(row["psnr"])) for row in csv.DictReader(file)]
    arms = ({subject: psnr for arm, subject, psnr in scores if arm == name} for name in ("regression", "gdl"))
    gain = compare(*arms)
    assert strong == ["strong", *shown, f"{gain.difference:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}]"]
    for line in lines:
        assert any(line[0] == row[0] and set(filter(None, line)) <= set(row) for row in rows), line
    pages = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("results.md", "own-data.md"))
    said = re.findall(r"\d[\d,.]*\d", re.sub(r"^\|.*$|\]\(.*?\)", "", section, flags=re.MULTILINE))
    assert [number for number in said if number not in pages] == []


def small(call: Callable[..., object], **least: object) -> Callable[..., object]:
    """A call of the library whose keywords are overridden: tables key by key, so that an example runs in seconds."""

    def smaller(*arguments: object, **given: object) -> object:
        for name, value in least.items():
            given[name] = {**given.get(name, {}), **value} if isinstance(value, dict) else value
        return call(*arguments, **given)

    return smaller


def put_back(registry: dict[str, object], entries: dict[str, object]) -> None:
    """Undo what an example has added to a registry."""
    registry.clear()
    registry.update(entries)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "CONTRIBUTING.md",
        "docs/python.md",
        "docs/settings.md",
        "docs/first-experiment.md",
        "docs/gpu.md",
        "docs/simulation.md",
    ],
)
def test_the_examples_of_a_page_run_from_top_to_bottom(name, tmp_path, monkeypatch, request, cli):
    from unscanned import losses
    from unscanned.evaluation import metrics
    from unscanned.models import discriminators, generators

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for registry in (
        generators.GENERATORS,
        discriminators.DISCRIMINATORS,
        metrics.METRICS,
        losses.TERMS,
    ):
        request.addfinalizer(partial(put_back, registry, dict(registry)))
    if name in HEAVY:
        monkeypatch.setattr(unscanned, "train", small(unscanned.train, **TINY), raising=False)
        monkeypatch.setattr(unscanned, "simulate", small(unscanned.simulate, shape=(32, 40, 32)), raising=False)
        if name != "README.md":  # which simulates its own
            unscanned.simulate("data/heads", subjects=4, seed=1)
    if name in WALKED:  # the costs that its commands tell are asserted in test_cli.py
        monkeypatch.setattr("unscanned.training.cost._measure", lambda *_: "not measured")
    namespace: dict[str, object] = {"__name__": "example", "unscanned": unscanned}
    for number, (language, text, before) in enumerate(blocks(ROOT / name), 1):
        if language in ("toml", "json"):
            Path(re.findall(r"`([\w.-]+\.(?:toml|json))`", before)[-1]).write_text(text, encoding="utf-8")
        elif language == "python":
            exec(compile(text, f"{name}, block {number}", "exec"), namespace)
        elif language == "bash" and name in WALKED:
            for line in text.replace("\\\n", " ").splitlines():
                done = cli(*shlex.split(line, comments=True)[1:])
                assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


HEAVY = {"README.md", "docs/settings.md"}
"Pages whose Python trains more than a test has time for: it runs with fewer and smaller heads, and fewer steps."

WALKED = {"docs/first-experiment.md"}
"Pages whose commands run too, in the order of the page."


def test_every_page_with_python_is_run_by_the_test_above():
    [mark] = [
        mark for mark in test_the_examples_of_a_page_run_from_top_to_bottom.pytestmark if mark.name == "parametrize"
    ]
    with_python = {str(page.relative_to(ROOT)) for page in PAGES if any(kind == "python" for kind, *_ in blocks(page))}
    assert sorted(with_python - set(mark.args[1])) == []


@each_page
def test_every_other_code_block_of_a_page_is_of_its_language(page):
    for language, text, _ in blocks(page):
        assert language in {"", "bash", "python", "toml", "json"}
        if language == "":
            assert not re.search(r"^(unscanned|python|make) [a-z]", text, re.MULTILINE), "name the block bash"
        elif language == "toml":
            tomllib.loads(text)
        elif language == "json":
            assert isinstance(ast.literal_eval(text), dict)


def test_a_table_of_results_is_printed_from_a_run(tmp_path, tiny_dataset, settings_file, cli, monkeypatch, capsys):
    run = tmp_path / "run"
    assert cli("reproduce", tiny_dataset, "-o", run, "--settings", settings_file, "--arms", "demo").returncode == 0
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    sys.modules.pop("results_table", None)
    from results_table import main

    main(run, tmp_path / "summary.csv")
    printed = capsys.readouterr().out.splitlines()
    assert [cells(line)[0] for line in printed[2:]] == ["source", "regression", "demo"]
    assert {len(cells(line)) for line in printed} == {9}
    with open(tmp_path / "summary.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["arm"], row["region"]) for row in rows} >= {("demo", "head"), ("demo", "volume")}
    assert list(rows[0])[:6] == ["arm", "region", "metric", "mean", "sd", "n"]
