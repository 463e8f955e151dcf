"""The notebook of the docs: what it shows is what it shows when it is run again."""

import re
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import run_notebook  # noqa: E402
from run_notebook import NOTEBOOK, execute  # noqa: E402


@pytest.fixture(scope="module")
def stored():
    return nbformat.read(NOTEBOOK, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(notebook):
    """What each cell shows: the kinds of its results, without what it says on the way."""
    return [[sorted(output.data) for output in cell.outputs if "data" in output] for cell in code(notebook)]


def results(notebook):
    """The text of each result, without numbers, which another machine may have otherwise."""
    return [
        re.sub(r"\d+(\.\d+)?", "0", output.data["text/plain"])
        for cell in code(notebook)
        for output in cell.outputs
        if "data" in output
    ]


@pytest.mark.slow
def test_the_notebook_runs_and_shows_again_what_is_stored(stored, tmp_path, monkeypatch):
    """Its training has 2 steps in place of 160, which no kind of result and no text without numbers shows."""
    text = NOTEBOOK.read_text(encoding="utf-8")
    length = '\\"epochs\\": 4, \\"steps_per_epoch\\": 40'
    assert text.count(length) == 1
    (tmp_path / "short.ipynb").write_text(text.replace(length, length.replace("4", "1", 1).replace("40", "2")))
    monkeypatch.setattr(run_notebook, "NOTEBOOK", tmp_path / "short.ipynb")
    again = execute(tmp_path)
    assert kinds(again) == kinds(stored)
    assert results(again) == results(stored)
    assert (tmp_path / "first-look" / "evaluation" / "scores.csv").is_file()


def test_the_stored_notebook_was_run_from_top_to_bottom(stored):
    assert [cell.execution_count for cell in code(stored)] == list(range(1, len(code(stored)) + 1))
    shown = {kind for cell in kinds(stored) for kinds_ in cell for kind in kinds_}
    assert shown == {"image/png", "text/html", "text/plain"}
    nbformat.validate(stored)


def test_the_stored_notebook_is_small_and_names_no_place_of_a_machine(stored):
    assert NOTEBOOK.stat().st_size < 1_000_000
    for cell in code(stored):
        for output in cell.outputs:
            assert output.output_type in ("execute_result", "display_data"), "a message or an error is stored"
            for kind, text in output.data.items():
                assert kind == "image/png" or not re.search(r"/(work|home|tmp|root|Users)/", text)


def test_every_link_of_the_notebook_leads_somewhere(stored):
    words = "\n".join(cell.source for cell in stored.cells if cell.cell_type == "markdown")
    targets = re.findall(r"\]\(([^)#]+)", words)
    assert targets
    assert [target for target in targets if not (NOTEBOOK.parent / target).exists()] == []
