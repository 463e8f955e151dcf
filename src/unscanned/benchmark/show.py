"""A benchmark for readers: Markdown and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unscanned.benchmark.workload import STRIDE
from unscanned.errors import SettingsError
from unscanned.files import atomic_path
from unscanned.outputs import claim, holds

__all__ = ["FORMATS", "check_plot", "plot", "table"]

FORMATS = ("png", "svg", "pdf")
"Of the plot, by the suffix of its file."

_MADE_BY = "unscanned benchmark"


def check_plot(path: Path) -> None:
    """Refuse a plot that could not be written as what its name says, before it is made.

    Raises:
        SettingsError: A suffix that is not one of `FORMATS`, or a file that is no such plot is there.
    """
    if path.suffix.lstrip(".") not in FORMATS:
        raise SettingsError(
            "no such format of a plot",
            where=path,
            found=path.suffix or "no suffix",
            expected=f"a name ending in .{', .'.join(FORMATS)}",
        )
    claim(path, holds(_MADE_BY), "an earlier plot of unscanned benchmark, or nothing")


def table(result: dict[str, Any]) -> str:
    """Return a result as Markdown: the comparisons, and the cost against size.

    Ratios are plain PyTorch's time over each one's: of seconds with their range, and of CPU seconds.
    """
    machine, inference, training, floor = (result[part] for part in ("machine", "inference", "training", "floor"))
    count, empty = inference["patches"], [""] * 5
    least = max(floor["seconds_operations"], floor["seconds_bytes"])
    lines = [
        f"{machine['device']}, {machine['threads']} threads, PyTorch {machine['torch']}; "
        f"matrix products {machine['gigaflop_per_second']:.0f} GFLOP/s, "
        f"copies {machine['copied_gigabyte_per_second']:.0f} GB/s",
        *_rows(
            f"{count} patches, stride {STRIDE} | s a patch | ratio | range | CPU | difference | MiB",
            *(
                (name, f"{row['seconds'] / count:.3f}", *_ratios(row), f"{row['relative_difference']:.1e}", _mib(row))
                for name, row in inference["contenders"].items()
            ),
            (f"floor: {floor['gigaflop']:.1f} GFLOP, {floor['gigabyte']:.2f} GB", f"{least:.3f}", *empty),
            *((name, f"not measured: {reason}", *empty) for name, reason in inference["missing"].items()),
        ),
        *_rows(
            f"training step, {training['batch']} patches | s a step | ratio | range | CPU | gradient error | MiB",
            *(
                (name, f"{row['seconds']:.2f}", *_ratios(row), f"{row['gradient_error']:.1e}", _mib(row))
                for name, row in training["contenders"].items()
            ),
        ),
        *_size(result["size"]),
    ]
    return "\n".join(lines) + "\n"


def _rows(head: str, *rows: Sequence[str]) -> list[str]:
    """Return the lines of a Markdown table, with an empty line before."""
    rule = " --- |" * (head.count("|") + 1)
    return ["", f"| {head} |", f"|{rule}", *(f"| {' | '.join(row)} |" for row in rows)]


def _size(size: dict[str, Any]) -> list[str]:
    rows = []
    for row in size["patches"]:
        count = "1 patch" if row["patches"] == 1 else f"{row['patches']} patches"
        rows.append((count, f"{row['seconds']:.2f}", f"{row['seconds'] / row['patches']:.3f} a patch"))
    for row in size["volumes"]:
        each = row["seconds"] / (row["edge"] ** 3 / 1e6)
        rows.append((f"{row['edge']}³ voxels, mode volume", f"{row['seconds']:.1f}", f"{each:.1f} a million voxels"))
    columns = "frequency domain, inference | range | forward and backward | range"
    measured = {"one patch of": "edges", "layer: kernel, channels, grid, patches": "layers"}
    return _rows("size | seconds | each", *rows) + [
        line
        for title, kind in measured.items()
        for line in _rows(
            f"{title} | {columns}",
            *((_named(row), *_times(row["forward"]), *_times(row["forward_backward"])) for row in size[kind]),
        )
    ]


def _named(row: dict[str, Any]) -> str:
    """Return what a patch or a layer is."""
    if "edge" in row:
        return f"{row['edge']}³"
    return f"{row['kernel']}³, {row['channels']}, {row['grid']}³, {row['patches']}"


def _mib(row: dict[str, Any]) -> str:
    return "" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}"


def _times(row: dict[str, Any]) -> tuple[str, str]:
    low, high = row["seconds_ratio_range"]
    return f"{row['seconds_ratio']:.1f} times plain", f"{low:.1f} to {high:.1f}"


def _ratios(row: dict[str, Any]) -> tuple[str, str, str]:
    low, high = row["seconds_ratio_range"]
    return f"{row['seconds_ratio']:.1f}", f"{low:.1f} to {high:.1f}", f"{row['cpu_seconds_ratio']:.1f}"


def plot(result: dict[str, Any], path: str | Path) -> None:
    """Draw the cost against size: patches, whole volumes, and layers against `Conv3d`.

    Args:
        result: Of `benchmark`.
        path: Image file; its suffix is the format, one of `FORMATS`.

    Raises:
        SettingsError: As for `check_plot`.
        ResourceError: It cannot be written.
    """
    from matplotlib.figure import Figure  # takes a second to import

    check_plot(Path(path))
    size = result["size"]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    counted, voxels, ratios = figure.subplots(1, 3)
    counted.loglog([row["patches"] for row in size["patches"]], [row["seconds"] for row in size["patches"]], "o-")
    counted.set(xlabel="patches of 32³ voxels", ylabel="seconds", title="Patches")
    voxels.loglog([row["edge"] ** 3 for row in size["volumes"]], [row["seconds"] for row in size["volumes"]], "o-")
    voxels.set(xlabel="voxels", ylabel="seconds", title="Mode volume")
    names = [_named(row) for row in size["layers"]]
    for pass_, marker in (("forward", "o"), ("forward_backward", "s")):
        values = [row[pass_]["seconds_ratio"] for row in size["layers"]]
        ratios.semilogx(values, range(len(values)), marker, label=pass_.replace("_", " and "))
    ratios.axvline(1.0, color="0.5", linewidth=1)
    ratios.set(
        yticks=range(len(names)),
        yticklabels=names,
        xlabel="times Conv3d",
        title="Layer: kernel, channels, grid, patches",
    )
    ratios.set_ylim(len(names) + 1.1, -0.7)  # the first on top, and room for the legend
    ratios.legend(loc="lower right", ncols=2)
    for axes in (counted, voxels):
        axes.xaxis.set_minor_formatter("")
        axes.yaxis.set_minor_formatter("")
        axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        kind = Path(path).suffix.lstrip(".")
        # A plot says what made it, so that it is known again and nothing else is replaced.
        figure.savefig(temporary, format=kind, dpi=150, metadata={"Software" if kind == "png" else "Creator": _MADE_BY})
