"""Weights in half precision: half the bytes, a small error that is told, and refusal of a large one."""

import numpy as np
import pytest
import safetensors.torch
import torch

from unscanned.errors import CheckpointError, SettingsError
from unscanned.synthesis.card import card
from unscanned.synthesis.model_file import load_model, save_model
from unscanned.synthesis.pack import LARGEST_ERROR, pack
from unscanned.synthesis.synthesize import synthesize
from unscanned.synthesis.verify import verify
from unscanned.volumes.nifti import read_volume


@pytest.fixture
def model(tiny_run):
    return load_model(tiny_run)


@pytest.fixture
def scans(tiny_dataset):
    return [read_volume(tiny_dataset / f"sub-{n:03}" / "anat" / f"sub-{n:03}_PDw.nii.gz") for n in (1, 2)]


def dtypes(folder):
    """How the weights are stored; counters of batches stay whole numbers."""
    tensors = safetensors.torch.load_file(folder / "model.safetensors").values()
    return {tensor.dtype for tensor in tensors if tensor.is_floating_point()}


def test_a_packed_model_has_half_the_bytes_and_the_error_that_was_told(model, scans, tmp_path):
    packed = pack(model, tmp_path / "packed", scans)
    assert dtypes(packed.folder) == {torch.float16}
    assert packed.bytes_after == (packed.folder / "model.safetensors").stat().st_size
    assert 0.5 < packed.bytes_after / packed.bytes_before < 0.55
    loaded = load_model(packed.folder)
    assert {weight.dtype for weight in loaded.generators[0].parameters()} == {torch.float32}
    errors = [np.abs(loaded.synthesize(scan).array - model.synthesize(scan).array).max() for scan in scans]
    assert packed.error == float(max(errors)) / model.normalization.target.scale
    assert 0 < packed.error <= LARGEST_ERROR
    facts = loaded.provenance["packed"]
    assert facts["largest_error"] == packed.error
    assert facts["from_sha256"] == model.sha256 != loaded.sha256
    assert [each["sha256"] for each in facts["scans"]] == [scan.sha256 for scan in scans]
    assert "float16" in dict(card(loaded))["weights"]


def test_what_a_packed_model_makes_is_verified_as_identical(model, scans, tmp_path):
    packed = pack(model, tmp_path / "packed", scans[:1])
    [made] = synthesize(packed.folder, [(scans[1].path, None)], tmp_path / "out").written
    assert verify(made, device="cpu").verdict == "identical"
    assert np.array_equal(read_volume(made).array, load_model(packed.folder).synthesize(scans[1]).array)


def test_a_model_is_written_in_float32_unless_it_is_packed(model, tiny_run, tmp_path):
    folder = save_model(model, tmp_path / "again")
    assert dtypes(folder) == {torch.float32}
    for name in ("model.safetensors", "model.json"):
        assert (folder / name).read_bytes() == (tiny_run / "model" / name).read_bytes()


def test_weights_that_half_precision_does_not_hold_are_refused(model, scans, tmp_path):
    with torch.no_grad():
        next(iter(model.generators[0].parameters())).fill_(1e6)
    with pytest.raises(CheckpointError, match=r"too large for half precision; expected at most 65,504"):
        pack(model, tmp_path / "packed", scans)
    assert not (tmp_path / "packed").exists()


def test_weights_whose_rounding_changes_the_volume_are_refused(model, scans, tmp_path):
    """They are so large that their rounding is more than a thousandth of the scale."""
    with torch.no_grad():
        for weight in model.generators[0].parameters():
            weight.mul_(4)
    words = r"sub-00\d_PDw.*half precision changes what the model makes; found .*, expected at most 0\.001"
    with pytest.raises(CheckpointError, match=words):
        pack(model, tmp_path / "packed", scans)
    assert not (tmp_path / "packed").exists()


def test_without_a_scan_there_is_no_error_to_tell(model, tmp_path):
    with pytest.raises(SettingsError, match="no scan to measure"):
        pack(model, tmp_path / "packed", [])
