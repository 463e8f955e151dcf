"""The command line itself, and the options that several verbs have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Group, Parameter, validators

from unscanned.cli.settings import HowOptions, Options, PrepareOptions, SpreadOptions, WorkloadOptions, in_help
from unscanned.cli.usage import refuse_fractions
from unscanned.machine.provenance import version
from unscanned.outputs import Mark, claim
from unscanned.report import MOST_MB
from unscanned.settings import Layout, Settings, preset_names

__all__ = [
    "PRESETS",
    "Arms",
    "Cluster",
    "DryRun",
    "DryRunOfSettings",
    "File",
    "Folds",
    "Given",
    "GivenToPrepare",
    "How",
    "InLayout",
    "Json",
    "LimitMb",
    "Load",
    "ModelsIn",
    "Out",
    "Preset",
    "Resample",
    "Seeds",
    "Source",
    "Subset",
    "Target",
    "TrainPreset",
    "app",
    "claim_json",
]

app = App(
    name="unscanned",
    help="Make the MR contrast that was never scanned: train on aligned pairs, synthesize, and show how good it is.\n\n"
    "A first look, without any data: `unscanned demo`.\n\n"
    "Your own scans: `unscanned check DATASET`, then `unscanned reproduce DATASET -o OUT`, or step by step `train`, "
    "`synthesize`, `evaluate`, `report`. Not for clinical use.",
    version=lambda: version(),
    help_format="markdown",
    suppress_keyboard_interrupt=False,  # main() has a message for it
    default_parameter=Parameter(show_default=in_help, negative_iterable=()),
    config=refuse_fractions,
)

Out = Annotated[Path, Parameter(name=["--out", "-o"])]
Json = Annotated[Path | None, Parameter(name="--json")]
PRESETS = "Settings to start from: " + ", ".join(preset_names())
Preset = Annotated[
    str | None,
    Parameter(
        name=["--preset", "-p"],
        help=f"{PRESETS}. Unset takes the one that the file of --settings names, else {Settings().preset}.",
    ),
]
TrainPreset = Annotated[
    str | None,
    Parameter(
        name=["--preset", "-p"],
        help=f"{PRESETS}. Unset takes the one that the file of --settings names, else that of the model of --from, "
        f"else {Settings().preset}.",
    ),
]
Labels = Annotated[
    Path | None,
    Parameter(
        name="--labels",
        help="Folder of label maps, such as sub-001_dseg.nii.gz, with their names in dseg.tsv: errors by tissue. Unset "
        "takes those that `simulate` wrote below derivatives/truth of the dataset, if any.",
    ),
]
File = Annotated[Path | None, Parameter(name="--settings", help="TOML file that overrides the preset.")]
_SETTINGS = Group(
    "Settings",
    help=f"What is not given is as in the preset. Shown are the values of {Settings().preset}, then those of other "
    "presets where they differ.",
)
_SYNTHESIS = Group("Synthesis", help="What is not given is as the model has it.")
Given = Annotated[Options | None, Parameter(name="*", group=_SETTINGS)]
GivenToPrepare = Annotated[PrepareOptions | None, Parameter(name="*", group=_SETTINGS)]
Source = Annotated[str, Parameter(name=["--source", "--data.source"])]
Target = Annotated[str, Parameter(name=["--target", "--data.target"])]
InLayout = Annotated[Layout, Parameter(name=["--layout", "--data.layout"])]
Resample = Annotated[bool, Parameter(name=["--resample", "--prepare.resample"], negative="")]
How = Annotated[HowOptions | None, Parameter(name="*", group=_SYNTHESIS)]
DrawnFrom = Annotated[
    SpreadOptions | None, Parameter(name="--spread", group=Group("Spread", help="What wide physics draws from."))
]
Load = Annotated[WorkloadOptions | None, Parameter(name="*", group="Workload")]
LimitMb = Annotated[
    float,
    Parameter(
        name="--limit-mb",
        validator=validators.Number(gt=0, lte=MOST_MB),
        help="Room for the volumes of each case in the page, MB; the precision follows from it.",
    ),
]
DryRun = Annotated[
    bool, Parameter(name="--dry-run", negative="", help="Print the resolved settings, what they cost here, and stop.")
]
DryRunOfSettings = Annotated[
    bool, Parameter(name="--dry-run", negative="", help="Print the resolved settings and stop.")
]
ModelsIn = Annotated[
    Path | None,
    Parameter(
        name="--models-in",
        help="Folder of models with names, as `fetch model -o` makes it, in place of the usual ones.",
    ),
]
Subset = Annotated[tuple[str, ...], Parameter(consume_multiple=True)]
Arms = Annotated[
    tuple[str, ...],
    Parameter(consume_multiple=True, help=f"Presets to compare, of {', '.join(preset_names())}."),
]
Seeds = Annotated[
    tuple[int, ...],
    Parameter(consume_multiple=True, help="Train each arm with each of these seeds; scores are means over them."),
]
Folds = Annotated[
    int,
    Parameter(
        validator=validators.Number(gte=1),
        help="Divide all subjects into so many parts and train each arm once for each part that tests; 1: one split.",
    ),
]
Cluster = Annotated[
    str | None,
    Parameter(
        name="--cluster",
        help="Work on all cases side by side: local or local:N (processes of this machine), the address of a Dask "
        "scheduler, or slurm or slurm:N (jobs).",
    ),
]


def claim_json(path: Path | None, is_own: Mark) -> None:
    """Refuse before the work begins a file for the results that holds anything but such results."""
    if path is not None:
        claim(path, is_own, "results of the same command")
