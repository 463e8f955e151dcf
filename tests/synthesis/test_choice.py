"""The model for a wanted contrast: picked by name, JSON file and looks, and refused where that leaves a doubt."""

import json
import re
import shutil

import numpy as np
import pytest
import torch

from unscanned.contrast.appearance import measure_appearance
from unscanned.contrast.check import ContrastProfile
from unscanned.errors import DatasetError, SettingsError, VolumeError
from unscanned.models import generators
from unscanned.settings import resolve
from unscanned.simulation.simulate import simulate
from unscanned.synthesis.choice import choose_models, pick_model
from unscanned.synthesis.model import Model
from unscanned.synthesis.model_file import load_model, save_model
from unscanned.synthesis.shelf import shelve
from unscanned.volumes.intensity import Contrast, Normalization
from unscanned.volumes.nifti import read_volume, write_volume

CONSTANTS = Normalization(99.9, Contrast(900.0, 0.2, 0.3), Contrast(800.0, 0.2, 0.3))


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """Three subjects with PD, T2 and T1 at 3.5 mm, the coarsest that the contrast check knows."""
    return simulate(
        tmp_path_factory.mktemp("choice") / "heads",
        subjects=3,
        per_anatomy=3,
        contrasts=("PD", "T2", "T1"),
        spacing_mm=3.5,
        noise=(0.0, 0.0),
        seed=9,
    )


def scan(heads, number, contrast):
    return heads / f"sub-{number:03}" / "anat" / f"sub-{number:03}_{contrast}w.nii.gz"


def put(shelf, heads, name, source, target):
    """Save a model with fresh weights that has seen sub-001 and sub-002, and put it on the shelf."""
    tables = {
        "data": {"source": source, "target": target},
        "training": {"patch": 24, "validation_stride": 24},
        "synthesis": {"stride": 24},
    }
    volumes = [read_volume(scan(heads, number, source.removesuffix("w"))) for number in (1, 2)]
    profile = ContrastProfile.of([measure_appearance(volume.array, volume.affine) for volume in volumes])
    torch.manual_seed(0)
    networks = [generators.build("small", residual=True).eval()]
    save_model(Model(networks, resolve("demo", None, tables), CONSTANTS, profile=profile), shelf / name)
    shelve(shelf, name)


@pytest.fixture(scope="module")
def shelf(heads, tmp_path_factory):
    folder = tmp_path_factory.mktemp("choice") / "models"
    put(folder, heads, "pd-t2", "PD", "T2")
    put(folder, heads, "t1w-t2w", "T1w", "T2w")
    put(folder, heads, "t2w-t1w", "T2w", "T1w")
    return folder


def nameless(path, folder):
    """The same bytes under a name that says no contrast, without its JSON file."""
    folder.mkdir(exist_ok=True)
    return shutil.copy(path, folder / "scan.nii.gz")


@pytest.mark.parametrize(("contrast", "name"), [("PD", "pd-t2"), ("T1", "t1w-t2w")])
def test_the_name_of_a_scan_picks_the_model(shelf, heads, contrast, name):
    choice = pick_model(scan(heads, 3, contrast), "T2", models_in=shelf)
    assert choice.model.name == name
    assert f"say {contrast}w" in choice.reason


def test_the_json_file_picks_it_where_the_name_says_nothing(shelf, heads, tmp_path):
    path = nameless(scan(heads, 3, "T1"), tmp_path)
    (tmp_path / "scan.json").write_text(json.dumps({"SeriesDescription": "t1 mprage sag"}))
    choice = pick_model(path, "T2w", models_in=shelf)
    assert (choice.model.name, choice.reason) == ("t1w-t2w", "its JSON file says T1w")


@pytest.mark.parametrize(("contrast", "name"), [("PD", "pd-t2"), ("T1", "t1w-t2w")])
def test_the_looks_pick_it_where_nothing_else_says_what_it_is(shelf, heads, tmp_path, contrast, name):
    choice = pick_model(nameless(scan(heads, 3, contrast), tmp_path), "T2w", models_in=shelf)
    assert choice.model.name == name
    assert "it looks like the scans that the model was trained on: PDw scores " in choice.reason


def test_looks_that_fit_no_model_are_refused_with_their_scores(shelf, heads, tmp_path):
    with pytest.raises(VolumeError, match=r"contrast of the scan is not known; .*PDw scores \d.*T1w scores \d"):
        pick_model(nameless(scan(heads, 3, "T2"), tmp_path), "T2w", models_in=shelf)


def test_a_name_and_a_json_file_that_differ_are_refused(shelf, heads, tmp_path):
    path = shutil.copy(scan(heads, 3, "T1"), tmp_path / "sub-003_T1w.nii.gz")
    (tmp_path / "sub-003_T1w.json").write_text(json.dumps({"SeriesDescription": "pd tse"}))
    with pytest.raises(VolumeError, match=r"not clear; found its name says T1w and its JSON file says PDw"):
        pick_model(path, "T2w", models_in=shelf)


def test_a_contrast_that_no_model_makes_is_refused_with_those_that_are_made(shelf, heads):
    with pytest.raises(SettingsError, match=r"no model makes this contrast; found FLAIR, .*T2 \(pd-t2\), T2w \(t1w-"):
        pick_model(scan(heads, 3, "T1"), "FLAIR", models_in=shelf)


@pytest.mark.parametrize("name", ["sub-1_T2w", "sub-1_T2starw", "sub-1_FLAIR"])
def test_a_contrast_that_no_model_takes_is_refused_with_those_that_are_taken(shelf, heads, tmp_path, name):
    path = shutil.copy(scan(heads, 3, "T1"), tmp_path / f"{name}.nii.gz")
    with pytest.raises(SettingsError, match=r"no model makes T2w from this.*PDw \(pd-t2\) or T1w \(t1w-t2w\)"):
        pick_model(path, "T2w", models_in=shelf)


def test_several_models_of_the_same_contrasts_are_not_chosen_among(shelf, heads, tmp_path):
    two = shutil.copytree(shelf, tmp_path / "two")
    put(two, heads, "t1w-t2w-7t", "T1w", "T2w")
    with pytest.raises(SettingsError, match=r"several models do this; .*t1w-t2w and t1w-t2w-7t"):
        pick_model(scan(heads, 3, "T1"), "T2w", models_in=two)
    with pytest.raises(SettingsError, match="several models do this"):
        pick_model(nameless(scan(heads, 3, "T1"), tmp_path / "in"), "T2w", models_in=two)


def test_no_models_at_all_are_said_to_be_none(heads, tmp_path):
    (tmp_path / "models.json").write_text('{"format": 1, "models": {}}')
    with pytest.raises(SettingsError, match="no model makes this contrast; found no models: none is on the shelf"):
        pick_model(scan(heads, 3, "T1"), "T2w", models_in=tmp_path)


def labels(folder):
    """A label map of a head, whole numbers without noise."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 60)] * 3, indexing="ij"), -1)
    radius = np.linalg.norm(grid / (0.7, 0.9, 0.8), axis=-1)
    array = np.select([radius < 0.3, radius < 0.6, radius < 0.8, radius < 0.9], [4, 2, 3, 24], 0)
    return array.astype(np.float32), folder / "scan.nii.gz"


def noise(folder):
    return np.random.default_rng(0).uniform(0, 900, (60, 60, 60)).astype(np.float32), folder / "scan.nii.gz"


def ct(folder):
    """Hounsfield units of a head: air, bone and soft tissue alone."""
    array, path = labels(folder)
    return np.select([array == 0, array == 24, array == 4], [-1000, 900, 5], 35).astype(np.float32), path


@pytest.mark.parametrize("kind", [labels, noise, ct])
def test_what_is_no_scan_of_a_head_is_not_given_a_model(shelf, tmp_path, kind):
    array, path = kind(tmp_path)
    write_volume(path, array, np.diag([3.0, 3.0, 3.0, 1.0]))
    with pytest.raises(VolumeError, match="the contrast of the scan is not known"):
        pick_model(path, "T2w", models_in=shelf)


def test_voxels_too_large_to_judge_leave_the_contrast_unknown(shelf, heads, tmp_path):
    volume = read_volume(scan(heads, 3, "T1"))
    write_volume(tmp_path / "scan.nii.gz", volume.array, np.diag([4.0, 4.0, 4.0, 1.0]))
    with pytest.raises(VolumeError, match=r"not known; found neither its name nor a JSON file says; voxels of 4 x 4"):
        pick_model(tmp_path / "scan.nii.gz", "T2w", models_in=shelf)


def test_each_scan_gets_its_own_model_and_a_bad_one_stops_no_other(shelf, heads, tmp_path):
    (tmp_path / "sub-9_T1w.nii.gz").write_bytes(b"")
    inputs = [scan(heads, 3, "PD"), scan(heads, 2, "T1"), scan(heads, 1, "T2"), tmp_path / "none.nii.gz"]
    choices, failures = choose_models(inputs, "T2w", models_in=shelf)
    assert {choice.model.name: [path for path, _ in choice.scans] for choice in choices} == {
        "pd-t2": inputs[:1],
        "t1w-t2w": inputs[1:2],
    }
    assert list(failures) == [str(path) for path in inputs[2:]]


def test_a_dataset_gets_the_one_model_that_it_has_scans_for(shelf, heads, tmp_path):
    with pytest.raises(DatasetError, match="scans for several models; found PDw for pd-t2 and T1w for t1w-t2w"):
        choose_models([heads], "T2w", models_in=shelf)
    [choice], failures = choose_models([heads], "T1w", models_in=shelf)
    assert (choice.model.name, choice.reason, failures) == ("t2w-t1w", "the dataset has T2w scans", {})
    assert [case for _, case in choice.scans] == ["sub-001", "sub-002", "sub-003"]
    with pytest.raises(DatasetError, match="no scan was found by its name"):
        choose_models([tmp_path], "T1w", models_in=shelf)


def test_the_command_line_says_which_model_it_takes_and_why(cli, shelf, heads, tmp_path):
    path = scan(heads, 3, "T1")
    done = cli("synthesize", path, "--to", "T2w", "-o", tmp_path / "out", "--models-in", shelf)
    assert done.returncode == 0, done.stderr
    assert "unscanned: model t1w-t2w for sub-003_T1w.nii.gz: its name and its JSON file say T1w" in done.stderr
    assert done.stdout.splitlines() == [str(tmp_path / "out/sub-003/anat/sub-003_desc-synthetic_T2w.nii.gz")]
    named = cli("synthesize", "t1w-t2w", path, "-o", tmp_path / "out", "--models-in", shelf)
    assert "1 were there already" in named.stdout


def test_the_model_that_was_picked_is_the_one_that_is_used_whatever_folder_has_its_name(
    cli, shelf, heads, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(shelf / "pd-t2", "t1w-t2w")
    done = cli("synthesize", scan(heads, 3, "T1"), "--to", "T2w", "-o", "out", "--models-in", shelf)
    assert done.returncode == 0, done.stderr
    [sidecar] = (tmp_path / "out").rglob("*_desc-synthetic_T2w.json")
    made_by = json.loads(sidecar.read_text())["Model"]
    found = pick_model(scan(heads, 3, "T1"), "T2w", models_in=shelf).model
    assert (made_by["Name"], made_by["Sha256"]) == ("t1w-t2w", found.sha256)
    assert load_model(found).sha256 == found.sha256


def test_a_scan_whose_looks_contradict_its_name_is_refused_as_ever(cli, shelf, heads, tmp_path):
    path = shutil.copy(scan(heads, 3, "T2"), tmp_path / "sub-1_T1w.nii.gz")
    call = ("synthesize", path, "--to", "T2w", "-o", tmp_path / "out", "--models-in", shelf)
    refused = cli(*call)
    assert refused.returncode == 3
    assert "this is not the contrast that the model was trained on" in refused.stderr
    assert list(tmp_path.rglob("*desc-synthetic*")) == []
    assert cli(*call, "--force").returncode == 0


def test_two_scans_of_one_subject_that_would_be_one_volume_are_refused(cli, shelf, heads, tmp_path):
    both = scan(heads, 3, "PD"), scan(heads, 3, "T1")
    done = cli("synthesize", *both, "--to", "T2w", "-o", tmp_path / "out", "--models-in", shelf)
    # T2 and T2w are one contrast in the name of the output.
    assert done.returncode == 2
    assert "two inputs have one output" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-o", "out"), "MODEL: must be given"),
        (("t1w-t2w", "-o", "out"), "INPUTS: must be given"),
        (("--to", "T2w", "-o", "out"), "INPUTS: must be given"),
        (("SCAN", "-o", "out"), "a model is needed before the scans; .* Or give --to CONTRAST"),
        (("SCAN", "SCAN", "-o", "out"), "a model is needed before the scans"),
        (("t1w-t2w", "SCAN", "--to", "T2w", "-o", "out"), "either a model or the contrast to make"),
    ],
)
def test_words_that_leave_open_which_is_the_model_are_refused(cli, shelf, heads, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    words = [scan(heads, 3, "T1") if word == "SCAN" else word for word in words]
    done = cli("synthesize", *words, "--models-in", shelf)
    assert done.returncode == 2
    assert re.search(message, done.stderr), done.stderr
    assert list(tmp_path.iterdir()) == []
