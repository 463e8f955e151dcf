"""Bars in a terminal and in Jupyter, and text that is shown."""

import ast
import contextlib
import os
import pty
import subprocess
import sys

import pytest

from unscanned.display import AUTOMATIC, draws_progress, html_table

WORK = """
import time
from unscanned.display import draws_progress
@draws_progress
def work(*, progress=None):
    for done in range(9):
        time.sleep(0.1)
        if progress:
            progress(done + 1, 9, "sub-\\x1b[2J7")
    return progress
"""


def in_terminal(program):
    """Run a program whose standard error is a terminal, and return what it wrote there."""
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen([sys.executable, "-c", program], stderr=slave, env=environment) as process:
        os.close(slave)
        written = b""
        with contextlib.suppress(OSError):  # Linux says so where the program has closed its end
            while block := os.read(master, 4096):
                written += block
    os.close(master)
    assert process.returncode == 0, written
    return written.decode()


@pytest.fixture(scope="module")
def in_jupyter():
    """Run a cell in a real kernel, and return the messages that drew or changed something."""
    manager = pytest.importorskip("jupyter_client.manager")
    kernel, client = manager.start_new_kernel(kernel_name="python3")

    def run(cell):
        messages = []
        reply = client.execute_interactive(cell, timeout=60, output_hook=messages.append)
        assert reply["content"]["status"] == "ok", messages
        assert not [message for message in messages if message["msg_type"] in ("stream", "error")]
        return [message for message in messages if "display_id" in message["content"].get("transient", {})]

    yield run
    client.stop_channels()
    kernel.shutdown_kernel(now=True)


def test_a_bar_shows_by_itself_in_a_terminal_and_goes_when_the_work_is_done():
    written = in_terminal(WORK + "work()")
    assert r"sub-\x1b[2J7" in written
    assert "━" in written
    assert "0:00:0" in written
    assert "\x1b[2K" in written[written.rindex("━") :], "the line is not cleared"


@pytest.mark.parametrize("off", ["None", "False"])
def test_an_argument_turns_the_bar_off(off):
    assert in_terminal(WORK + f"assert work(progress={off}) is None") == ""


def test_nothing_is_drawn_where_nobody_looks_on():
    program = WORK + "assert work() is None"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_bar_shows_by_itself_in_jupyter_and_goes_when_the_work_is_done(in_jupyter):
    shown = in_jupyter(WORK + "_ = work()")
    first, *updates, last = shown
    assert first["msg_type"] == "display_data"
    assert {message["msg_type"] for message in (*updates, last)} == {"update_display_data"}
    assert len({message["content"]["transient"]["display_id"] for message in shown}) == 1
    assert r"sub-\x1b[2J7" in first["content"]["data"]["text/html"]
    assert set(last["content"]["data"].values()) == {""}


def test_an_argument_turns_the_bar_off_in_jupyter_too(in_jupyter):
    assert in_jupyter(WORK + "_ = work(progress=None)") == []


def test_what_is_done_at_once_shows_no_bar_in_jupyter(in_jupyter):
    assert in_jupyter(WORK.replace("sleep(0.1)", "sleep(0)") + "_ = work()") == []


def test_a_function_of_the_caller_takes_the_place_of_the_bar():
    @draws_progress
    def work(*, progress=AUTOMATIC):
        progress(1, 2, "half")

    reports = []
    work(progress=lambda *report: reports.append(report))
    assert reports == [(1, 2, "half")]


def test_all_long_calls_of_the_package_draw_a_bar():
    import inspect

    import unscanned

    taking = [
        value
        for value in (*(getattr(unscanned, name) for name in unscanned.__all__), unscanned.Model.synthesize)
        if callable(value) and not inspect.isclass(value) and "progress" in inspect.signature(value).parameters
    ]
    assert len(taking) == 12
    for function in taking:
        assert inspect.signature(function).parameters["progress"].default is AUTOMATIC, function
        assert hasattr(function, "__wrapped__"), function


def test_cells_of_a_table_are_text_and_never_markup():
    table = html_table([["<b>arm</b>", "a\x1b[2Jb"]], header=["arm", "x & y"])
    assert "<b>" not in table
    assert "\x1b" not in table
    assert "&lt;b&gt;arm&lt;/b&gt;" in table
    assert "x &amp; y" in table


def test_importing_the_package_imports_nothing_of_notebooks_and_pictures():
    program = "import sys, unscanned; print(sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    loaded = set(ast.literal_eval(done.stdout))
    assert loaded.isdisjoint({"IPython", "matplotlib", "PIL", "rich", "torch", "numpy"})


def test_a_warning_points_at_the_line_that_called_into_the_package(tiny_dataset, tiny_settings, tmp_path):
    import unscanned

    with pytest.warns(UserWarning, match="leaves out part of the head") as caught:
        unscanned.train(tiny_dataset, tmp_path / "run", tiny_settings.change(prepare={"shape": (16, 16, 16)}))
    [told] = [warning for warning in caught if "leaves out" in str(warning.message)]
    assert told.filename == __file__
