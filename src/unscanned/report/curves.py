"""The course of training, from the logs of the arms."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unscanned.report.figures import png
from unscanned.training.log import read_log

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["find_logs", "training_curves"]

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#444444", "#f0c000")

_PANELS = {
    "Discriminator's loss": ("step", "d_loss"),
    "Adversarial term of the generator": ("step", "adversarial"),
    "L1 term of the generator": ("step", "l1"),
    "Gradient difference term (GDL) of the generator": ("step", "gdl"),
    "PSNR of the validation volumes (dB)": ("validation", "psnr"),
}


def find_logs(runs: Mapping[str, str | Path]) -> dict[str, Path]:
    """Return the log of each run, or of each stage of an auto-context chain, by the name to show."""
    found = {}
    for arm, folder in runs.items():
        if (Path(folder) / "log.jsonl").is_file():
            found[arm] = Path(folder) / "log.jsonl"
        for stage in sorted(Path(folder).glob("stage-*/log.jsonl")):
            found[f"{arm}, {stage.parent.name.replace('-', ' ')}"] = stage
    return found


def training_curves(
    runs: Mapping[str, str | Path], further: Mapping[str, Sequence[str | Path]] | None = None
) -> bytes | None:
    """Draw the losses and the validation PSNR of all runs against the step, the chosen epoch marked.

    Losses are running means over a hundredth of the run. What no log has is left out.

    Args:
        runs: Run folder of each arm.
        further: More runs of these arms, of other seeds or folds: paler, in the arm's colour.

    Returns:
        A PNG, or None when there is no log with a number in it.
    """
    from matplotlib.figure import Figure

    logs = {name: [read_log(path)] for name, path in find_logs(runs).items()}
    for arm, folders in (further or {}).items():
        for folder in folders:
            for name, path in find_logs({arm: folder}).items():
                logs.setdefault(name, []).append(read_log(path))
    panels = {
        title: key
        for title, key in _PANELS.items()
        if any(_series(log, *key)[0].size for of_arm in logs.values() for log in of_arm)
    }
    if not panels:
        return None
    rows = math.ceil(len(panels) / 2)
    figure = Figure(figsize=(11.5, 3.1 * rows), dpi=110, facecolor="white", layout="constrained")
    for number, (title, (event, key)) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(rows, min(2, len(panels)), number)
        for colour, (name, of_arm) in zip(itertools.cycle(_COLOURS), logs.items(), strict=False):
            for place, log in enumerate(of_arm):
                label = name.replace("$", r"\$") if place == 0 else None
                _draw(axes, log, event, key, color=colour, label=label, alpha=1.0 if place == 0 else 0.4)
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel("step", fontsize=8.5)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = figure.axes[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 5), fontsize=8.5, frameon=False)
    return png(figure)


def _draw(axes: Axes, log: list[dict[str, Any]], event: str, key: str, **look: Any) -> None:
    steps, values = _series(log, event, key)
    if event == "step":
        steps, values = _smooth(steps, values)
    axes.plot(steps, values, linewidth=1.3, marker=None if event == "step" else ".", **look)
    best = [record for record in log if record.get("event") == "validation" and record.get("best")]
    if event == "validation" and best and "psnr" in best[-1]:
        ring = {**look, "label": None}
        axes.plot(best[-1]["step"], best[-1]["psnr"], "o", markersize=9, fillstyle="none", **ring)


def _series(log: list[dict[str, Any]], event: str, key: str) -> tuple[np.ndarray, np.ndarray]:
    # A resumed run logs the steps after its checkpoint again: the later record of a step stands.
    points = {
        record["step"]: record[key]
        for record in log
        if record.get("event") == event
        and isinstance(record.get(key), (int, float))
        and isinstance(record.get("step"), int)
    }
    steps = sorted(points)
    return np.array(steps, float), np.array([points[step] for step in steps], float)


def _smooth(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    window = max(1, len(values) // 100)
    if window == 1:
        return steps, values
    return steps[window - 1 :], np.convolve(values, np.ones(window) / window, mode="valid")
