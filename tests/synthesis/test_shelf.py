"""Models by name: what is there, what is refused, and which one a word stands for."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from unscanned.errors import CheckpointError, SettingsError
from unscanned.files import read_json, write_json
from unscanned.synthesis import shelf as module
from unscanned.synthesis.model_file import load_model
from unscanned.synthesis.shelf import SHIPPED, ShelvedModel, find_model, list_models, place_of, read_list, shelve
from unscanned.synthesis.synthesize import synthesize
from unscanned.synthesis.verify import verify
from unscanned.volumes.nifti import read_volume


@pytest.fixture
def own(shelf, tmp_path):
    """A copy of the shelf that a test may change."""
    return shutil.copytree(shelf, tmp_path / "own")


@pytest.fixture
def at_home(monkeypatch, tmp_path):
    """An empty home folder for the models that are fetched."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "unscanned" / "models"


@pytest.fixture
def scan(tiny_dataset):
    return tiny_dataset / "sub-001" / "anat" / "sub-001_PDw.nii.gz"


def test_a_model_that_is_named_is_the_one_in_its_folder(shelf, scan):
    named, placed = load_model("pd-t2", models_in=shelf), load_model(shelf / "pd-t2")
    assert (named.name, placed.name) == ("pd-t2", "")
    assert named.sha256 == placed.sha256
    volume = read_volume(scan)
    assert np.array_equal(named.synthesize(volume).array, placed.synthesize(volume).array)
    assert load_model("PD-T2", models_in=shelf).sha256 == named.sha256


def test_a_name_that_is_not_there_is_refused_with_those_that_are(shelf):
    with pytest.raises(CheckpointError, match=r"pd-t3: no model of this name; found pd-t2, .*Did you mean pd-t2\?"):
        load_model("pd-t3", models_in=shelf)


def test_without_any_model_the_refusal_says_so(own, at_home, monkeypatch):
    write_json(own / "models.json", {"format": 1, "models": {}})
    monkeypatch.setattr(module, "SHIPPED", own)
    assert list_models() == []
    with pytest.raises(CheckpointError, match="found no models: none is on the shelf, and none was fetched"):
        load_model("t1w-t2w")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def edit(path: Path) -> None:
    path.write_text(path.read_text().replace('"stages": 1', '"stages":  1'))


@pytest.mark.parametrize(
    ("file", "fault", "words"),
    [
        ("model.safetensors", flip, "not the file that belongs to the model; found sha256 .*, expected "),
        ("model.json", edit, "not the file that belongs to the model"),
        ("model.safetensors", Path.unlink, "a file of the model cannot be read; found No such file"),
        ("model.json", Path.unlink, "cannot be read"),
    ],
)
def test_a_model_with_another_file_than_it_was_listed_with_is_refused(own, file, fault, words):
    fault(own / "pd-t2" / file)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_model("pd-t2", models_in=own)
    assert caught.value.exit_code == 5
    assert str(caught.value).startswith(str(own / "pd-t2"))
    assert caught.value.do


def test_a_model_of_the_package_that_was_changed_asks_for_another_installation(own, at_home, monkeypatch):
    monkeypatch.setattr(module, "SHIPPED", own)
    assert load_model("pd-t2").name == "pd-t2"
    assert [model.origin for model in list_models()] == ["comes with unscanned"]
    flip(own / "pd-t2" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"Install unscanned again\."):
        load_model("pd-t2")


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 9}', '{"format": 1, "models": {"../x": {"files": {}}}}'])
def test_a_list_of_models_that_cannot_be_read_is_refused(own, content):
    (own / "models.json").write_text(content)
    with pytest.raises(CheckpointError):
        list_models(own)


def test_a_folder_without_a_list_of_models_is_refused_where_it_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"models\.json: no list of models is there"):
        list_models(tmp_path)


def test_the_models_of_the_package_are_there_where_the_users_cannot_be_read(own, at_home, monkeypatch):
    monkeypatch.setattr(module, "SHIPPED", own)
    at_home.mkdir(parents=True)
    (at_home / "models.json").write_text("{")
    with pytest.warns(UserWarning, match="fetched models are passed over"):
        assert load_model("pd-t2").name == "pd-t2"


def test_two_models_of_one_name_are_refused_with_both_folders(own, at_home, monkeypatch):
    monkeypatch.setattr(module, "SHIPPED", own)
    shutil.copytree(own, at_home)
    with pytest.raises(CheckpointError, match="two models have this name") as caught:
        load_model("pd-t2")
    assert str(own / "pd-t2") in str(caught.value)
    assert str(at_home / "pd-t2") in str(caught.value)


def test_a_folder_with_a_model_goes_before_a_name_and_says_so(own, tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("pd-t2").mkdir()  # without a model, such as an output folder
    assert isinstance(place_of("pd-t2", own), ShelvedModel)
    shutil.copytree(tiny_run / "model", "pd-t2", dirs_exist_ok=True)
    with pytest.warns(UserWarning, match="the folder pd-t2 is taken, not the model of that name"):
        assert load_model("pd-t2", models_in=own).name == ""


@pytest.mark.parametrize("name", ["", "../x", "A", "a/b", "x" * 101, ".x"])
def test_what_is_no_name_is_not_shelved(own, name):
    with pytest.raises(SettingsError, match="not a name for a model"):
        shelve(own, name)


def test_a_folder_without_a_model_is_not_shelved(own):
    (own / "empty").mkdir()
    with pytest.raises(CheckpointError, match="a file of the model cannot be read"):
        shelve(own, "empty")
    assert list(read_list(own).models) == ["pd-t2"]


def test_a_volume_of_a_named_model_is_verified_where_the_model_has_moved(own, scan, at_home, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "SHIPPED", own)
    made = synthesize("pd-t2", [(scan, None)], tmp_path / "out")
    [volume] = made.written
    facts = json.loads(volume.with_name(volume.name.replace(".nii.gz", ".json")).read_text())
    assert facts["Model"]["Name"] == "pd-t2"
    assert verify(volume, device="cpu").verdict == "identical"
    own.rename(tmp_path / "another-environment")
    with pytest.raises(CheckpointError):
        verify(volume, device="cpu")
    monkeypatch.setattr(module, "SHIPPED", tmp_path / "another-environment")
    assert verify(volume, device="cpu").verdict == "identical"
    assert verify(volume, model="pd-t2", device="cpu").verdict == "identical"


def test_every_model_of_the_package_is_small_whole_and_has_its_card():
    """At most 12 MB each and 40 MB in all, as the wheel has to carry them."""
    models = list_models(SHIPPED)
    for model in models:
        model.check()
        assert model.size_bytes <= 12e6, model.name
        assert model.card is not None, model.name
        assert load_model(model.folder).sha256 == model.sha256
    files = [path for path in SHIPPED.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) <= 40e6
    listed = {SHIPPED / "models.json"} | {model.folder / name for model in models for name in model.entry.files}
    assert sorted(set(files) - listed) == []


def test_the_models_are_listed_and_written_as_json(cli, shelf, tmp_path):
    done = cli("models", "--models-in", shelf, "--json", tmp_path / "models.json")
    assert done.returncode == 0
    for word in ("pd-t2", "T2 from PD", "kB", find_model("pd-t2", shelf).sha256[:8]):
        assert word in done.stdout
    [facts] = read_json(tmp_path / "models.json")["models"]
    assert facts["sha256"] == load_model(shelf / "pd-t2").sha256
    assert facts["bytes"] == sum(path.stat().st_size for path in (shelf / "pd-t2").iterdir())
    assert facts["card"] is None


def test_a_model_whose_folder_was_removed_is_gone(own):
    shutil.rmtree(own / "pd-t2")
    assert list_models(own) == []


def test_a_list_of_no_models_says_where_to_get_one(cli, own):
    write_json(own / "models.json", {"format": 1, "models": {}})
    done = cli("models", "--models-in", own)
    assert done.returncode == 0
    assert "no models" in done.stdout
    assert "unscanned fetch model" in done.stdout


def test_a_damaged_model_does_not_hide_the_others(cli, own, tiny_run):
    shutil.copytree(tiny_run / "model", own / "broken")
    shelve(own, "broken")
    flip(own / "broken" / "model.safetensors")
    done = cli("models", "--models-in", own)
    assert done.returncode == 4
    assert "pd-t2" in done.stdout
    assert "not the file that belongs to the model" in done.stderr
    assert "1 of 2 models cannot be used, the others are listed" in done.stderr
    assert cli("models", "broken", "--models-in", own).returncode == 5
    flip(own / "pd-t2" / "model.safetensors")
    done = cli("models", "--models-in", own)
    assert done.returncode == 5
    assert "no model can be used" in done.stderr


def test_a_model_without_a_card_says_so(cli, shelf):
    done = cli("models", "pd-t2", "--models-in", shelf)
    assert done.returncode == 0
    assert "none: the model has no card.json" in done.stdout
    assert cli("models", "none-such", "--models-in", shelf).returncode == 5


def test_a_named_model_synthesizes_from_the_command_line(cli, shelf, scan, tmp_path):
    done = cli("synthesize", "pd-t2", scan, "-o", tmp_path / "out", "--models-in", shelf)
    assert done.returncode == 0, done.stderr
    again = cli("synthesize", shelf / "pd-t2", scan, "-o", tmp_path / "out")
    assert "1 were there already" in again.stdout
