"""Runs docs/notebook.ipynb anew and writes it with what its cells show: `python tools/run_notebook.py`."""

from __future__ import annotations

import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

from unscanned.files import write_text

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "notebook.ipynb"


def execute(folder: Path) -> NotebookNode:
    """Return the notebook with what its cells show, run from top to bottom in a folder.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell failed.
    """
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources, record_timing=False).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_empty(output)]
    notebook.metadata["language_info"] = {"name": "python"}  # which release ran it would differ each time
    return notebook


def _is_empty(output: NotebookNode) -> bool:
    """Whether it is what a bar leaves behind."""
    return output.output_type == "display_data" and not any(output.data.values())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        text = nbformat.writes(execute(Path(place)))
    write_text(NOTEBOOK, text + "\n")
    print(f"{NOTEBOOK}: {len(text):,} bytes")
