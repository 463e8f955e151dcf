"""How text, long work and results show themselves to a person: in a terminal, and in a notebook."""

from __future__ import annotations

import contextlib
import functools
import html
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from unscanned.progress import Pace, Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

__all__ = ["AUTOMATIC", "bars", "draws_progress", "html_table", "in_a_line", "shown", "warn"]

P = ParamSpec("P")
R = TypeVar("R")

_NOTEBOOK_DELAY_S, _NOTEBOOK_PERIOD_S = 0.5, 0.2
"A cell that is done sooner shows no bar; a bar is sent to the browser no more often."

_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"Characters that steer a terminal or turn the direction of text, as they may stand in a file's name."


def shown(text: str) -> str:
    """Return a text with all that could steer a terminal as escapes.

    Example:
        >>> shown("sub-01\x1b[2J")
        'sub-01\\\\x1b[2J'
    """
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def in_a_line(text: str) -> str:
    """Return a text that is shown in one line: line breaks, as they may stand in a file's name, are escapes too."""
    return shown(text).replace("\n", "\\n")


def warn(message: str) -> None:
    """Warn as of the line that called into the package, which is the one that a reader of the warning can change."""
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and frame.f_globals["__name__"].startswith("unscanned."):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def html_table(rows: Iterable[Sequence[object]], *, header: Sequence[object] = (), caption: str = "") -> str:
    """Return a table for a notebook, whose look it takes.

    Args:
        rows: Cells, as text; the first of each row is its heading.
        header: Headings of the columns, if they have any.
        caption: What stands above.
    """

    def row(cells: Sequence[object], *tags: str) -> str:
        texts = (html.escape(shown(str(cell))).replace("\n", "<br>") for cell in cells)
        marked = ((tags[0] if number == 0 else tags[-1], text) for number, text in enumerate(texts))
        return "<tr>" + "".join(f'<{tag} style="text-align: left">{text}</{tag}>' for tag, text in marked) + "</tr>"

    parts = [f'<caption style="text-align: left">{html.escape(shown(caption))}</caption>'] if caption else []
    parts += [f"<thead>{row(header, 'th')}</thead>"] if header else []
    parts.append("<tbody>" + "".join(row(cells, "th", "td") for cells in rows) + "</tbody>")
    return "<table>" + "\n".join(parts) + "</table>"


class _Automatic:
    """The progress function that stands for a bar; `draws_progress` puts one in its place."""

    def __call__(self, done: int, total: int, label: str) -> None:
        """Draw nothing: there is no bar yet."""

    def __repr__(self) -> str:
        return "AUTOMATIC"


AUTOMATIC: Progress = _Automatic()
"Default of `progress`: a bar where somebody looks on."


def draws_progress(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function of the library draw a bar by itself, in a terminal and in Jupyter.

    Elsewhere, as in a script whose messages go to a file, nothing is drawn.

    Args:
        function: Takes the keyword `progress`, `AUTOMATIC` by default. It gets the bar's progress function instead, and
            None where nobody looks on. What a caller gives in its place, a function or None, it gets as it is; False
            counts as None.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        given = kwargs.get("progress", AUTOMATIC)
        automatic = given is AUTOMATIC or given is True
        with _watched() if automatic else contextlib.nullcontext(given or None) as progress:
            kwargs["progress"] = progress
            return function(*args, **kwargs)

    return call


@contextlib.contextmanager
def bars() -> Iterator[Progress]:
    """Yield a progress function that draws a bar with the time left on standard error, where that is a terminal."""
    with _bars() as drawn:
        yield _reporting(drawn)


@contextlib.contextmanager
def _watched() -> Iterator[Progress | None]:
    """Yield what draws a bar where somebody looks on, and None elsewhere."""
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_jupyter:
        with _notebook_bars() as progress:
            yield progress
    elif console.is_interactive:
        with bars() as progress:
            yield progress
    else:
        yield None


@contextlib.contextmanager
def _notebook_bars() -> Iterator[Progress]:
    """Yield a progress function that draws a bar below a notebook's cell, which goes when the work is done."""
    from IPython.display import display

    drawn = _bars()
    report = _reporting(drawn)
    handle: Any = None
    due = time.monotonic() + _NOTEBOOK_DELAY_S

    def show(done: int, total: int, label: str) -> None:
        nonlocal handle, due
        report(done, total, label)
        if time.monotonic() < due:
            return
        if handle is None:
            handle = display(drawn, display_id=True)
        else:
            handle.update(drawn)
        due = time.monotonic() + _NOTEBOOK_PERIOD_S

    try:
        yield show
    finally:
        if handle is not None:
            handle.update({"text/plain": "", "text/html": ""}, raw=True)


def _bars() -> Bars:
    from rich.console import Console, RenderableType
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars
    from rich.text import Text

    class Bar(Bars):
        """A bar below the line that says what is being done, so that neither takes room from the other."""

        def get_renderables(self) -> Iterator[RenderableType]:
            for task in self.tasks:
                yield Text(task.description, no_wrap=True, overflow="ellipsis")
            yield self.make_tasks_table(self.tasks)

    columns = (BarColumn(), TextColumn("{task.fields[share]}"), TimeElapsedColumn(), TextColumn("{task.fields[left]}"))
    return Bar(*columns, console=Console(stderr=True), transient=True)


def _reporting(drawn: Bars) -> Progress:
    """Return a progress function for a bar, which never says 100 % while the work goes on."""
    task, pace = drawn.add_task("", total=None, share="", left=""), Pace()

    def report(done: int, total: int, label: str) -> None:
        now = pace(done, total)
        drawn.update(task, completed=now.share, total=1, description=shown(label), share=now.percent, left=now.left)

    return report
