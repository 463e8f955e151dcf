"""Fixtures that more than one room of the tests uses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from unscanned.cli import main
from unscanned.datasets.pairs import find_pairs
from unscanned.files import write_json
from unscanned.formats.shelf import ShelfRecord
from unscanned.settings import Settings, resolve, to_toml
from unscanned.simulation import heads
from unscanned.simulation.heads import Head
from unscanned.simulation.simulate import simulate
from unscanned.synthesis.shelf import shelve
from unscanned.training.prepare import prepare
from unscanned.training.run import Trained, train

torch.set_num_threads(1)  # tests run side by side, and a fixed number of threads makes results the same each time


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real scans that lie beside the repository; a test that needs them is skipped where they are missing."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the scans are not beside the repository: {folder}")
    return folder


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four simulated subjects of 32 x 40 x 32 voxels, PD and T2."""
    return simulate(tmp_path_factory.mktemp("tiny") / "dataset", subjects=4, shape=(32, 40, 32), seed=1)


@pytest.fixture(scope="session")
def other_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other heads under the names of those of `tiny_dataset`."""
    return simulate(tmp_path_factory.mktemp("other") / "dataset", subjects=4, shape=(32, 40, 32), seed=2)


@pytest.fixture(scope="session")
def tiny_prepared(tiny_dataset: Path, tiny_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The subjects of `tiny_dataset` as `tiny_settings` have them prepared; tests must not change them."""
    folder = tmp_path_factory.mktemp("tiny") / "prepared"
    assert prepare(find_pairs(tiny_dataset), folder, tiny_settings.prepare)[1] == {}
    return folder


@pytest.fixture(scope="session")
def train_tiny(tiny_dataset: Path, tiny_prepared: Path) -> Callable[..., Trained]:
    """`train` on `tiny_dataset`, prepared once for all: most of a short training is the preparation."""
    return partial(train, tiny_dataset, cache=tiny_prepared)


@pytest.fixture(scope="session")
def small_head() -> Head:
    """A built-in head with voxels of 2.5 mm, which is quick to draw from."""
    return heads.draw_built_in("small", np.random.default_rng(3), spacing_mm=2.5)


@pytest.fixture
def coarse_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's own heads have voxels of 2.5 mm: each is another one as ever, in a sixteenth of the time."""
    for module in ("stream", "simulate"):
        monkeypatch.setattr(f"unscanned.simulation.{module}.draw_built_in", COARSE)


COARSE = partial(heads.draw_built_in, spacing_mm=2.5)


@pytest.fixture(scope="session")
def tiny_settings() -> Settings:
    """The demo's networks on patches of 16 voxels: two epochs of three steps, two subjects train, one validates."""
    return resolve("demo", overrides=TINY)


@pytest.fixture(scope="session")
def settings_file(tiny_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_settings` as a file for the command line."""
    path = tmp_path_factory.mktemp("settings") / "tiny.toml"
    path.write_text(to_toml(tiny_settings), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_run(tiny_dataset: Path, tiny_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `tiny_settings`; tests must not change it."""
    folder = tmp_path_factory.mktemp("tiny") / "run"
    train(tiny_dataset, folder, tiny_settings)
    return folder


@pytest.fixture(scope="session")
def ten_heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten simulated subjects with PD and T2, 40 x 48 x 40 voxels of 5 mm, as many as a profile of the scans needs."""
    folder = tmp_path_factory.mktemp("ten") / "heads"
    return simulate(folder, subjects=10, per_anatomy=1, shape=(40, 48, 40), spacing_mm=5.0, seed=4)


@pytest.fixture(scope="session")
def ten_heads_run(ten_heads: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short training on eight of them; tests must not change it."""
    tables = {
        "prepare": {"shape": [40, 48, 40]},
        "split": {"train": 8, "validation": 1, "test": 1},
        "training": {"epochs": 1, "steps_per_epoch": 10, "patch": 16, "validation_stride": 16, "device": "cpu"},
        "synthesis": {"stride": 16},
    }
    folder = tmp_path_factory.mktemp("ten") / "run"
    train(ten_heads, folder, resolve("demo", overrides=tables))
    return folder


@pytest.fixture
def cli(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command line within this process, which saves the seconds of starting one; `tool.run` has it apart."""
    for place, hook in ((warnings, "showwarning"), (threading, "excepthook")):
        monkeypatch.setattr(place, hook, getattr(place, hook))  # put back what main() sets

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        words = [str(argument) for argument in arguments]
        capsys.readouterr()
        code = main(words)
        return subprocess.CompletedProcess(words, code, *capsys.readouterr())

    return call


@pytest.fixture
def no_shipped_models(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The package without its models, whose names a test gives to its own."""
    empty = tmp_path_factory.mktemp("package")
    write_json(empty / "models.json", ShelfRecord().to_json())
    for module in ("shelf", "fetch_model"):
        monkeypatch.setattr(f"unscanned.synthesis.{module}.SHIPPED", empty)


@pytest.fixture
def bids_errors() -> Callable[[Path], list[tuple[str, str]]]:
    """The errors that the official validator of BIDS finds in a folder, as (code, place)."""
    beside = Path(sys.executable).with_name("bids-validator-deno")
    command = str(beside) if beside.exists() else shutil.which("bids-validator-deno")
    if command is None:
        pytest.skip("bids-validator-deno is not installed (pip install unscanned[dev])")

    def errors(folder: Path) -> list[tuple[str, str]]:
        done = subprocess.run([command, "--format", "json", folder], capture_output=True, text=True, timeout=240)
        issues = json.loads(done.stdout)["issues"]["issues"]
        return [(issue["code"], issue.get("location", "")) for issue in issues if issue["severity"] == "error"]

    return errors


TINY = {
    "prepare": {"shape": [32, 32, 32]},
    "split": {"train": 2, "validation": 1, "test": 1},
    "training": {
        "epochs": 2,
        "steps_per_epoch": 3,
        "batch": 2,
        "patch": 16,
        "min_head": 0.1,
        "validation_stride": 16,
        "seed": 1,  # some tests need the second epoch to be the better one
        "device": "cpu",
    },
    "context": {"stride": 16},
    "synthesis": {"stride": 16},
}


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A disk of its own, of 4 MB; `parametrize("small_disk", ["256k"], indirect=True)` makes it another size."""
    folder = tmp_path / "disk"
    folder.mkdir()
    size = getattr(request, "param", "4m")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture(scope="session")
def shelf(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shelf with the model of `tiny_run` as pd-t2; tests must not change it."""
    folder = tmp_path_factory.mktemp("shelf") / "models"
    shutil.copytree(tiny_run / "model", folder / "pd-t2")
    shelve(folder, "pd-t2")
    return folder
