"""Unscanned makes the MR contrast that was never scanned.

Train on a dataset of aligned pairs, synthesize the target of a new scan, and score the result:

    import unscanned

    trained = unscanned.train("data/bids", "runs/resgan", preset="resgan", training={"epochs": 3})
    model = unscanned.load_model(trained.model)
    synthetic = model.synthesize(unscanned.read_volume("sub-01_PDw.nii.gz"))
    unscanned.write_volume("synthetic_T2w.nii.gz", synthetic.array, synthetic.affine)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unscanned.datasets.check import check_dataset
    from unscanned.datasets.ixi import fetch_ixi
    from unscanned.datasets.pairs import find_pairs
    from unscanned.datasets.split import split_subjects
    from unscanned.errors import UnscannedError
    from unscanned.evaluation.evaluate import evaluate
    from unscanned.experiment import reproduce
    from unscanned.report.page import write_report
    from unscanned.settings import Settings, resolve
    from unscanned.simulation.simulate import simulate
    from unscanned.synthesis.model import Model
    from unscanned.synthesis.model_file import load_model
    from unscanned.synthesis.synthesize import list_inputs, synthesize
    from unscanned.training.run import train
    from unscanned.volumes.nifti import Volume, read_volume, write_volume

__all__ = [
    "Model",
    "Settings",
    "UnscannedError",
    "Volume",
    "check_dataset",
    "evaluate",
    "fetch_ixi",
    "find_pairs",
    "list_inputs",
    "load_model",
    "read_volume",
    "reproduce",
    "resolve",
    "simulate",
    "split_subjects",
    "synthesize",
    "train",
    "write_report",
    "write_volume",
]

# Imported when first asked for: torch takes seconds, and the command line has to start at once.
_HOMES = {
    "Model": "synthesis.model",
    "Settings": "settings",
    "UnscannedError": "errors",
    "Volume": "volumes.nifti",
    "check_dataset": "datasets.check",
    "evaluate": "evaluation.evaluate",
    "fetch_ixi": "datasets.ixi",
    "find_pairs": "datasets.pairs",
    "list_inputs": "synthesis.synthesize",
    "load_model": "synthesis.model_file",
    "read_volume": "volumes.nifti",
    "reproduce": "experiment",
    "resolve": "settings",
    "simulate": "simulation.simulate",
    "split_subjects": "datasets.split",
    "synthesize": "synthesis.synthesize",
    "train": "training.run",
    "write_report": "report.page",
    "write_volume": "volumes.nifti",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'unscanned' has no attribute {name!r}")
    return getattr(import_module(f"unscanned.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
