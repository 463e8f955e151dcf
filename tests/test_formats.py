"""What older releases wrote is loaded, resumed and verified, or refused by name: docs/formats.md."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from unscanned.cli import main
from unscanned.datasets.layout import sidecar_path
from unscanned.errors import CheckpointError, SettingsError, VolumeError
from unscanned.files import read_json, read_sealed, write_json, write_sealed
from unscanned.formats.checkpoint import CheckpointRecord, comparable
from unscanned.machine.provenance import version
from unscanned.settings import decisive, read_settings, resolve, to_toml
from unscanned.synthesis.model_file import load_model, save_model
from unscanned.synthesis.sidecar import read_sidecar
from unscanned.synthesis.verify import verify
from unscanned.training.prepare import Case
from unscanned.training.run import train
from unscanned.volumes.nifti import read_volume

STORED = Path(__file__).parent / "formats"
RELEASES = sorted(path for path in STORED.glob("20*") if path.is_dir())
pytestmark = pytest.mark.parametrize("stored", RELEASES, ids=lambda path: path.name)


@pytest.fixture
def copy(stored, tmp_path):
    """A copy of what one release wrote; resuming writes into it."""
    return shutil.copytree(stored, tmp_path / "stored")


def same_weights(folder, expected):
    """Whether two models have the same weights but for the arithmetic of another processor."""
    found, wanted = (safetensors.torch.load_file(path / "model.safetensors") for path in (folder, expected))
    assert list(found) == list(wanted)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-3, atol=1e-5, msg=name)


IN_ANOTHER_ROUNDING = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512",
    reason="the volumes between the stages are known by their bits, and other processors round otherwise",
)
ARMS = pytest.mark.parametrize("arm", ["run", pytest.param("chain", marks=IN_ANOTHER_ROUNDING)])


@ARMS
def test_an_interrupted_run_goes_on_to_the_model_that_its_own_release_made(copy, arm):
    given = read_json(copy / arm / "settings.json")
    settings = read_settings(given, where="settings.json")
    trained = train(copy / "dataset", copy / arm, settings)
    same_weights(trained.model, copy / "expected" / arm)
    steps = [json.loads(line) for line in (copy / arm).glob("**/log.jsonl").__next__().read_text().splitlines()]
    assert {event["event"] for event in steps} >= {"step", "validation"}


@ARMS
def test_a_finished_run_is_called_again_without_a_change(copy, arm):
    settings = read_settings(read_json(copy / arm / "settings.json"), where="settings.json")
    model = train(copy / "dataset", copy / arm, settings).model
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    train(copy / "dataset", copy / arm, settings)
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before


@pytest.mark.parametrize("arm", ["run", "chain"])
def test_a_model_is_loaded_with_the_identity_that_its_volumes_name(stored, tmp_path, arm):
    model = load_model(stored / "expected" / arm)
    assert (model.source, model.target) == ("PD", "T2")
    again = load_model(save_model(model, tmp_path / "again"))
    assert again.settings == model.settings
    assert again.normalization == model.normalization
    assert again.weights_sha256 == model.weights_sha256
    if arm == "run":
        assert read_sidecar(next(stored.glob("synthetic/**/*.nii.gz"))).model.sha256 == model.sha256


def test_a_synthetic_volume_is_made_again_and_is_the_same(stored):
    (volume,) = stored.glob("synthetic/**/*.nii.gz")
    assert verify(volume, device="cpu").verdict in ("identical", "within tolerance")


def test_a_synthetic_volume_that_is_there_is_not_made_again(copy, capsys):
    (volume,) = copy.glob("synthetic/**/*.nii.gz")
    facts = read_json(sidecar_path(volume))
    scan = volume.parent / facts["SourceScans"][0]["Path"]
    before = volume.read_bytes()
    assert main(["synthesize", str(copy / "expected" / "run"), str(scan), "-o", str(copy / "synthetic")]) == 0
    assert "1 were there already" in capsys.readouterr().out
    assert volume.read_bytes() == before


def test_a_prepared_case_is_read(stored):
    (folder,) = (stored / "prepared").iterdir()
    case = Case("sub-001", "001", folder)
    assert case.facts.source.name == "sub-001_PDw.nii.gz"
    assert case.source.shape == case.target.shape == case.head.shape == tuple(case.facts.frame["crop"])
    scan = read_volume(stored / "dataset" / "sub-001" / "anat" / "sub-001_PDw.nii.gz")
    assert case.facts.source.sha256 == scan.sha256
    assert np.isclose(case.source.max() * case.facts.source_scale, scan.array.max(), rtol=1e-5)


def test_the_identity_of_a_checkpoint_names_what_is_not_at_its_default_alone(stored):
    path = stored / "run" / "checkpoints" / "step-00000005.json"
    record = CheckpointRecord.load(read_sealed(path), where=path, error=CheckpointError)
    given = read_settings(read_json(stored / "run" / "settings.json"), where="settings.json")
    assert {table: record.identity[table] for table in decisive(given)} == decisive(given)
    assert "synthesis" not in record.identity
    assert comparable(record.identity) == record.identity


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 3}, "another format of model; found 3, written by unscanned .*, expected 2"),
        ({"colour": "blue"}, r"colour: unknown key; expected one of .* unscanned .* wrote the file"),
        ({"stages": "two"}, "stages: a value of the wrong kind; found 'two', expected integer"),
        ({"settings": {"training": {"epoch": 3}}}, "tables of the settings are missing"),
    ],
)
def test_a_model_of_a_newer_release_is_refused_with_key_value_and_release(copy, change, words):
    path = copy / "expected" / "run" / "model.json"
    write_sealed(path, read_sealed(path) | change)
    with pytest.raises(CheckpointError, match=words):
        load_model(path.parent)


def test_a_setting_that_this_release_does_not_know_is_refused_with_the_near_one(copy):
    path = copy / "expected" / "run" / "model.json"
    facts = read_sealed(path)
    facts["settings"]["training"]["learning_rates"] = 3.0
    write_sealed(path, facts)
    with pytest.raises(CheckpointError, match=r"learning_rates: unknown setting.*Did you mean learning_rate\?"):
        load_model(path.parent)
    path = copy / "run" / "settings.json"
    write_json(path, facts["settings"])
    with pytest.raises(CheckpointError, match=r"learning_rates.*Did you mean learning_rate\?"):
        train(copy / "dataset", copy / "run", resolve("demo", overrides={"split": {"train": 3, "test": 1}}))
    (copy / "mine.toml").write_text("[training]\nlearning_rates = 3.0\n")
    with pytest.raises(SettingsError, match=r"mine\.toml: training\.learning_rates"):
        resolve("demo", copy / "mine.toml")
    (copy / "mine.toml").write_text("# Settings of unscanned 9.8.7\n[training]\nlearning_rates = 3.0\n")
    with pytest.raises(SettingsError, match=r"mine\.toml \(of unscanned 9\.8\.7\): training\.learning_rates"):
        resolve("demo", copy / "mine.toml")
    text = to_toml(resolve("demo")).replace("learning_rate =", "learning_rates =")
    (copy / "mine.toml").write_text(text)
    with pytest.raises(SettingsError, match=rf"\(of unscanned {re.escape(version())}\): training\.learning_rates"):
        resolve("demo", copy / "mine.toml")


def test_a_sidecar_of_a_newer_release_is_refused_with_its_release(copy):
    (volume,) = copy.glob("synthetic/**/*.nii.gz")
    write_json(sidecar_path(volume), read_json(sidecar_path(volume)) | {"SidecarFormat": 2})
    with pytest.raises(VolumeError, match="another format of sidecar; found 2, written by unscanned"):
        verify(volume)


def test_a_name_that_a_setting_had_before_is_still_read(stored):
    assert "context" in read_json(stored / "run" / "settings.json")["training"]
    assert resolve("demo", overrides={"training": {"context": 3}}).training.margin == 3


def test_a_model_of_format_1_is_refused_by_name(stored):
    with pytest.raises(CheckpointError, match=r"another format of model; found 1, .*expected 2"):
        load_model(STORED / "model-format-1")
