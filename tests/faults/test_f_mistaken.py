"""Section F of the table of faults: a synthetic image mistaken for an acquired one, or for another synthetic one."""

import dataclasses
import re
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from unscanned.cli import main
from unscanned.datasets.layout import sidecar_path
from unscanned.files import read_json, read_sealed, sha256, write_json, write_sealed
from unscanned.machine.provenance import version
from unscanned.synthesis.model_file import load_model
from unscanned.synthesis.synthesize import synthesize
from unscanned.synthesis.verify import TOLERANCE, verify
from unscanned.volumes.nifti import read_volume, write_volume


@pytest.fixture(scope="module")
def scan(tiny_dataset):
    return tiny_dataset / "sub-001" / "anat" / "sub-001_PDw.nii.gz"


@pytest.fixture(scope="module")
def made(tiny_run, scan, tmp_path_factory):
    """A synthetic volume as `synthesize` writes it; tests must not change it."""
    out = tmp_path_factory.mktemp("made") / "synthetic"
    return synthesize(load_model(tiny_run), [(scan, None)], out).written[0]


@pytest.fixture
def own(made, tmp_path):
    """A copy of the volume and its sidecar that a test may change."""
    shutil.copy(sidecar_path(made), tmp_path)
    return Path(shutil.copy(made, tmp_path))


def test_f_the_file_itself_says_that_it_is_synthetic(made):
    assert made.name == "sub-001_desc-synthetic_T2w.nii.gz"
    description = bytes(nibabel.load(made).header["descrip"]).rstrip(b"\0").decode()
    assert description == f"SYNTHETIC T2 unscanned {version()}"


def test_f_the_sidecar_says_what_made_it_of_what_with_what_and_what_for(made, scan, tiny_run):
    facts = read_json(sidecar_path(made))
    assert facts["Synthetic"] is True
    assert facts["IntendedUse"] == "research"
    assert facts["Warning"] == "SYNTHETIC - NOT FOR DIAGNOSIS"
    assert facts["GeneratedBy"][0] == {"Name": "unscanned", "Version": version()}
    assert facts["SourceScans"][0]["Sha256"] == sha256(scan)
    assert facts["Model"]["Sha256"] == load_model(tiny_run).sha256
    assert facts["Model"]["WeightsSha256"] == sha256(tiny_run / "model" / "model.safetensors")
    assert re.fullmatch("[0-9a-f]{16}", facts["Model"]["Settings"])
    assert {"unscanned", "commit", "torch", "numpy", "nibabel", "device", "threads"} <= set(facts["Environment"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", facts["Made"])
    assert facts["Warnings"] == list(read_volume(scan).warnings)
    assert facts["Sha256"] == sha256(made)


def test_f_what_was_odd_about_the_scan_and_the_work_stands_in_the_sidecar(scan, tiny_run, tmp_path):
    odd = tmp_path / "odd.nii"
    nibabel.save(nibabel.load(scan), odd)
    with open(odd, "ab") as file:
        file.write(bytes(10))
    model = load_model(tiny_run)
    model = dataclasses.replace(model, settings=model.settings.change(prepare={"shape": [16, 16, 16]}))
    (made,) = synthesize(model, [(odd, None)], tmp_path / "out", crop="always").written
    said = read_json(sidecar_path(made))["Warnings"]
    assert any("10 bytes follow the last voxel" in text for text in said)
    assert any("the head is larger than the model's grid of [16, 16, 16]" in text for text in said)


def test_f_the_dataset_says_that_it_is_derived_and_from_where(made):
    facts = read_json(made.parents[2] / "dataset_description.json")
    assert facts["DatasetType"] == "derivative"
    assert facts["GeneratedBy"][0]["Name"] == "unscanned"
    assert re.fullmatch(r"file:(\.\./)+.*dataset", facts["SourceDatasets"][0]["URL"])


def test_f_the_same_command_gives_the_same_bytes(made, scan, tiny_run, tmp_path):
    again = synthesize(load_model(tiny_run), [(scan, None)], tmp_path).written[0]
    assert again.read_bytes() == made.read_bytes()


def test_f_verify_finds_the_volume_identical_on_the_same_device_and_threads(made, capsys):
    result = verify(made)
    assert (result.verdict, result.difference) == ("identical", 0.0)
    assert main(["verify", str(made)]) == 0
    assert capsys.readouterr().out.startswith("identical")


@pytest.mark.parametrize("clip", ["minimum", "none"])
def test_f_verify_clips_where_the_volume_was_clipped(scan, tiny_run, tmp_path, clip):
    (made,) = synthesize(load_model(tiny_run), [(scan, None)], tmp_path, clip=clip).written
    assert read_json(sidecar_path(made))["Synthesis"]["clip"] == clip
    assert bool(read_volume(made).array.min() < 0) is (clip == "none")
    assert verify(made).verdict == "identical"


def test_f_verify_with_another_number_of_threads_stays_within_the_stated_tolerance(made, capsys):
    threads = torch.get_num_threads()
    result = verify(made, threads=threads + 1)
    assert torch.get_num_threads() == threads
    assert result.verdict in ("identical", "within tolerance")
    assert result.difference <= TOLERANCE["float32"]
    assert f"threads: made with {threads}, now {threads + 1}" in result.reasons


def test_f_verify_finds_a_voxel_that_was_changed(own, scan, tiny_run, capsys):
    volume = read_volume(own)
    array = volume.array.copy()
    array[10, 10, 10] += 50
    write_volume(own, array, volume.affine)
    options = ["--model", str(tiny_run / "model"), "--scan", str(scan)]
    assert main(["verify", str(own), *options]) == 4
    message = capsys.readouterr().err
    assert "the file was changed after it was made" in message
    facts = read_json(sidecar_path(own)) | {"Sha256": sha256(own)}
    write_json(sidecar_path(own), facts)
    assert verify(own, model=tiny_run / "model", scan=scan).verdict == "different"


def test_f_verify_refuses_another_scan_another_model_and_a_volume_without_a_sidecar(
    own, scan, tiny_run, tiny_dataset, tmp_path, capsys
):
    model = ["--model", str(tiny_run / "model")]
    other = tiny_dataset / "sub-002" / "anat" / "sub-002_PDw.nii.gz"
    assert main(["verify", str(own), *model, "--scan", str(other)]) == 3
    assert "another scan than the one" in capsys.readouterr().err
    changed = shutil.copytree(tiny_run / "model", tmp_path / "model")
    weights = bytearray((changed / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (changed / "model.safetensors").write_bytes(bytes(weights))
    facts = read_sealed(changed / "model.json") | {"weights_sha256": sha256(changed / "model.safetensors")}
    write_sealed(changed / "model.json", facts)
    assert main(["verify", str(own), "--model", str(changed), "--scan", str(scan)]) == 5
    assert "another model than the one" in capsys.readouterr().err
    assert main(["verify", str(own)]) in (3, 5)
    assert "no longer where the sidecar says" in capsys.readouterr().err
    sidecar_path(own).unlink()
    assert main(["verify", str(own), *model]) == 3
    assert "no sidecar says how the volume was made" in capsys.readouterr().err


def test_f_verify_refuses_a_model_whose_intensity_constants_are_others(own, scan, tiny_run, tmp_path, capsys):
    changed = shutil.copytree(tiny_run / "model", tmp_path / "model")
    facts = read_sealed(changed / "model.json")
    facts["normalization"]["target"]["mean"] += 0.1
    write_sealed(changed / "model.json", facts)
    assert main(["verify", str(own), "--model", str(changed), "--scan", str(scan)]) == 5
    assert "another model than the one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        ("Environment", "threads", "x"),
        ("Synthesis", "mode", 3),
        ("Synthesis", "mode", "best"),
        ("Synthesis", "stride", "x"),
        ("Synthesis", "stride", 0),
        ("Synthesis", "precision", "float8"),
        ("Model", "Path", 3),
        ("Model", "Sha256", None),
        (None, "Sha256", 3),
        (None, "SourceScans", []),
        (None, "SourceScans", "scan"),
        (None, "Synthesis", None),
    ],
)
def test_f_verify_refuses_a_sidecar_that_was_damaged(own, scan, tiny_run, capsys, table, key, value):
    facts = read_json(sidecar_path(own))
    (facts if table is None else facts[table])[key] = value
    write_json(sidecar_path(own), facts)
    code = main(["verify", str(own), "--model", str(tiny_run / "model"), "--scan", str(scan)])
    assert code in (2, 3, 5), capsys.readouterr().err


def test_f_verify_passes_over_what_it_does_not_know(own, scan, tiny_run):
    facts = read_json(sidecar_path(own))
    facts["Synthesis"]["color"] = "blue"
    facts["Intensity"]["scale"] = 0
    write_json(sidecar_path(own), facts)
    assert verify(own, model=tiny_run / "model", scan=scan).verdict == "identical"


def test_f_verify_finds_a_volume_that_was_moved_to_another_grid(own, scan, tiny_run):
    volume = read_volume(own)
    affine = volume.affine.copy()
    affine[0, 3] += 5
    write_volume(own, volume.array, affine)
    result = verify(own, model=tiny_run / "model", scan=scan)
    assert result.verdict == "different"
    assert "it lies on another grid" in result.reasons
    assert np.isinf(result.difference)
