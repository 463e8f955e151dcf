"""A13: a scan of another contrast given to a model. The command refuses it, or marks what it was forced to make."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from unscanned.cli import main
from unscanned.contrast.appearance import measure_appearance
from unscanned.contrast.check import THRESHOLD, ContrastProfile
from unscanned.files import read_sealed, write_sealed
from unscanned.models import generators
from unscanned.settings import resolve
from unscanned.simulation.simulate import simulate
from unscanned.synthesis.model import Model
from unscanned.synthesis.model_file import load_model, save_model
from unscanned.volumes.intensity import Contrast, Normalization
from unscanned.volumes.nifti import read_volume

OUTPUT = "sub-003_desc-synthetic_T2w"


@dataclass(frozen=True)
class Setting:
    """A PD model that saw sub-001 and sub-002, one that kept no profile, and the scans of sub-003."""

    model: Path
    old_model: Path
    scans: dict[str, Path]


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    root = tmp_path_factory.mktemp("wrong-contrast")
    dataset = simulate(
        root / "heads",
        subjects=3,
        per_anatomy=3,
        contrasts=("PD", "T2", "T1"),
        spacing_mm=3.5,
        noise=(0.0, 0.0),
        seed=9,
    )
    training = [read_volume(dataset / f"sub-00{i}" / "anat" / f"sub-00{i}_PDw.nii.gz") for i in (1, 2)]
    profile = ContrastProfile.of([measure_appearance(scan.array, scan.affine) for scan in training])
    settings = resolve("demo", None, {"training": {"patch": 24, "validation_stride": 24}, "synthesis": {"stride": 24}})
    torch.manual_seed(0)
    networks = [generators.build("small", residual=True).eval()]
    constants = Normalization(99.9, Contrast(900.0, 0.2, 0.3), Contrast(800.0, 0.2, 0.3))
    models = [
        save_model(Model(networks, settings, constants, profile=stored), root / name)
        for name, stored in (("model", profile), ("old-model", None))
    ]
    folder = dataset / "sub-003" / "anat"
    return Setting(*models, {c: folder / f"sub-003_{c}w.nii.gz" for c in ("PD", "T2", "T1")})


def synthesize(model: Path, scan: Path, out: Path, *options: str) -> int:
    return main(["synthesize", str(model), str(scan), "-o", str(out), "--device", "cpu", *options])


def stamp(out: Path, name: str = OUTPUT) -> dict:
    [path] = out.rglob(f"{name}.json")
    return json.loads(path.read_text())


def volumes(out: Path) -> list[Path]:
    return sorted(out.rglob("*.nii*"))


def without_a_name(scan: Path, folder: Path) -> Path:
    """The same bytes under a name that says no contrast, without its JSON file."""
    folder.mkdir()
    copy = folder / "scan.nii.gz"
    copy.write_bytes(scan.read_bytes())
    return copy


def test_a13_a_scan_of_the_right_contrast_is_made_and_verified(setting, tmp_path):
    assert synthesize(setting.model, setting.scans["PD"], tmp_path / "out") == 0
    content = stamp(tmp_path / "out")
    assert content["InputContrastVerified"] is True
    assert content["InputContrast"]["Score"] <= content["InputContrast"]["Threshold"] == THRESHOLD


@pytest.mark.parametrize("contrast", ["T1", "T2"])
def test_a13_another_contrast_is_refused_by_its_looks_with_exit_3_and_nothing_written(
    setting, tmp_path, capsys, contrast
):
    scan = without_a_name(setting.scans[contrast], tmp_path / "in")
    assert synthesize(setting.model, scan, tmp_path / "out") == 3
    message = " ".join(capsys.readouterr().err.split())
    assert f"looks like {contrast}w" in message
    assert "expected PDw" in message
    assert volumes(tmp_path / "out") == []


def test_a13_a_name_that_contradicts_is_refused_also_without_a_profile(setting, tmp_path, capsys):
    renamed = without_a_name(setting.scans["PD"], tmp_path / "in").rename(tmp_path / "in" / "sub-003_T2w.nii.gz")
    for model in (setting.model, setting.old_model):
        assert synthesize(model, renamed, tmp_path / "out") == 3
        assert "its name says T2w" in " ".join(capsys.readouterr().err.split())
    assert volumes(tmp_path / "out") == []


def test_a13_force_goes_on_and_stamps_the_sidecar(setting, tmp_path, capsys):
    scan = without_a_name(setting.scans["T1"], tmp_path / "in")
    out = tmp_path / "out"
    assert synthesize(setting.model, scan, out, "--force") == 0
    content = stamp(out, "sub-scan_desc-synthetic_T2w")
    assert content["InputContrastVerified"] is False
    assert content["InputContrast"]["Score"] > THRESHOLD
    assert "T1w" in content["InputContrast"]["Reason"]
    before = [path.read_bytes() for path in volumes(out)]
    # What was forced is not taken for done: without --force the scan is refused as before, and the file stays.
    assert synthesize(setting.model, scan, out) == 3
    assert [path.read_bytes() for path in volumes(out)] == before


def test_a13_force_does_not_make_again_what_was_verified(setting, tmp_path, capsys):
    for options in ([], ["--force"]):
        assert synthesize(setting.model, setting.scans["PD"], tmp_path / "out", *options) == 0
    assert "1 were there already" in " ".join(capsys.readouterr().out.split())
    assert stamp(tmp_path / "out")["InputContrastVerified"] is True


def test_a13_a_model_without_a_profile_takes_the_scan_and_says_that_nothing_is_known(setting, tmp_path):
    facts = read_sealed(setting.old_model / "model.json")
    del facts["fingerprint"]
    write_sealed(setting.old_model / "model.json", facts)
    assert load_model(setting.old_model).profile is None
    scan = without_a_name(setting.scans["T1"], tmp_path / "in")
    assert synthesize(setting.old_model, scan, tmp_path / "out") == 0
    content = stamp(tmp_path / "out", "sub-scan_desc-synthetic_T2w")
    assert content["InputContrastVerified"] is None
    assert content["InputContrast"]["Score"] is None


def test_a13_a_model_keeps_its_profile_on_disk(setting):
    stored = load_model(setting.model).profile
    assert stored is not None
    assert stored.scans == 2
    seen = measure_appearance((scan := read_volume(setting.scans["PD"])).array, scan.affine)
    assert stored.score(seen) <= THRESHOLD
