"""The main job on simulated heads, in a few minutes on a laptop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unscanned.errors import SettingsError
from unscanned.evaluation.evaluate import Evaluation
from unscanned.experiment import claim_folder, reproduce
from unscanned.outputs import claim, nothing
from unscanned.progress import Progress, interruptible, labelled, shares
from unscanned.settings import resolve
from unscanned.simulation.simulate import simulate

__all__ = ["Demo", "demo"]

ARM = "strong"
SETTINGS: dict[str, dict[str, Any]] = {
    "prepare": {"shape": [96, 112, 96]},
    "split": {"train": 5, "validation": 1, "test": 2},
    "training": {"epochs": 4, "steps_per_epoch": 120},
}
"What the demo changes of that preset: few subjects on a small grid, and steps that two threads take in three minutes."

_COSTS = (20, 250)
"Of the simulation and of the experiment: seconds of processor time, with one thread."


@dataclass(frozen=True)
class Demo:
    """What the demo made.

    Attributes:
        evaluation: Scores of the generator and of the baselines.
        synthetic: The synthetic volumes of the test subjects.
        report: The HTML file.
    """

    evaluation: Evaluation
    synthetic: list[Path]
    report: Path


def demo(
    out: str | Path,
    *,
    subjects: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Demo:
    """Simulate a dataset, train the preset `strong`, synthesize and score the test subjects, and write the report.

    The scores say how far they are below what noise and tissues allow, and have the errors by tissue.

    Args:
        out: Gets dataset/, the run, and report.html.
        subjects: Simulated subjects, at least 7; five train, one chooses the epoch, the others test.
        seed: Of simulation, split and training.
        progress: Called with (done, total, label).
        should_stop: Asked after each training step, and whenever other work tells how far it is.

    Raises:
        SettingsError: There are too few subjects, or `out` holds anything but a demo. Nothing was written.
        UnscannedError: As for `simulate` and `reproduce`.
    """
    split = resolve(ARM, overrides=SETTINGS).split
    test = subjects - split.train - split.validation
    if test < 1:
        raise SettingsError(
            "too few subjects for the demo",
            where="subjects",
            found=subjects,
            expected=f"at least {subjects - test + 1}: {split.train} train, {split.validation} validation, 1 test",
        )
    out = Path(out)
    claim_folder(out)
    if not (out / "dataset").exists():
        for name in ("split.json", "arms", "prepared", "evaluation"):
            claim(out / name, nothing, "an earlier demo, or nothing", do="Choose a folder of its own.")
    simulation, experiment = shares(progress, _COSTS)
    dataset = simulate(
        out / "dataset",
        subjects=subjects,
        seed=seed,
        clean=True,
        progress=labelled(interruptible(simulation, should_stop, out), "simulation, "),
    )
    result = reproduce(
        dataset,
        out,
        arms=[ARM],
        overrides={
            **SETTINGS,
            "training": {**SETTINGS["training"], "seed": seed},
            "split": {**SETTINGS["split"], "test": test, "seed": seed},
        },
        progress=experiment,
        should_stop=should_stop,
    )
    return Demo(result.evaluation, sorted((out / "synthetic").rglob("*_desc-synthetic_*.nii.gz")), result.report)
