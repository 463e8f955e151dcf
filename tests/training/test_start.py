"""A run that starts from a model: whose network, intensities and weights it has, and that it is another run."""

import functools
import itertools
import json
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import TINY

from unscanned.datasets.pairs import find_pairs
from unscanned.errors import CheckpointError, Interrupted, SettingsError
from unscanned.files import read_json
from unscanned.settings import decisive, resolve
from unscanned.synthesis.card import card
from unscanned.synthesis.model_file import load_model
from unscanned.synthesis.pack import pack
from unscanned.synthesis.shelf import shelve
from unscanned.training.prepare import prepare
from unscanned.training.run import train
from unscanned.training.start import resolve_run
from unscanned.volumes.nifti import read_volume


@pytest.fixture(scope="module")
def train_others(other_dataset, tiny_settings, tmp_path_factory):
    """`train` on subjects that the model has not seen, prepared once for all."""
    folder = tmp_path_factory.mktemp("others") / "prepared"
    assert prepare(find_pairs(other_dataset), folder, tiny_settings.prepare)[1] == {}
    return functools.partial(train, other_dataset, cache=folder)


def from_(model, **tables):
    """The settings of a short run that starts from a model."""
    given = {**tables, "training": {**TINY["training"], "start": str(model), **tables.get("training", {})}}
    return resolve_run("demo", None, {"split": TINY["split"], **given})


def after(steps, folder):
    """What stops a run once it has taken so many steps."""
    asked = itertools.count(1)
    return lambda: (folder / "checkpoints").exists() and next(asked) >= steps


def weights(folder):
    return (folder / "model" / "model.safetensors").read_bytes()


def test_a_run_of_no_learning_is_the_model_that_it_starts_from(tiny_run, train_others, tmp_path):
    """Its weights do not move, so its network is the model's, on the model's z-scores; the scales are its own."""
    start = load_model(tiny_run)
    trained = train_others(tmp_path / "run", from_(tiny_run, training={"learning_rate": 1e-30, "epochs": 1}))
    made = load_model(trained.model)
    for found, wanted in zip(made.generators[0].parameters(), start.generators[0].parameters(), strict=True):
        assert torch.equal(found, wanted)
    for side in ("source", "target"):
        found, wanted = getattr(made.normalization, side), getattr(start.normalization, side)
        assert (found.mean, found.std) == (wanted.mean, wanted.std)
        assert found.scale != wanted.scale


def test_the_first_state_of_a_run_is_the_model_with_its_running_means(tiny_run, train_others, tmp_path):
    with pytest.raises(Interrupted):
        train_others(tmp_path / "run", from_(tiny_run), should_stop=after(1, tmp_path / "run"))
    first = safetensors.torch.load_file(tmp_path / "run" / "checkpoints" / "step-00000000.safetensors")
    found = {name.removeprefix("generator/"): tensor for name, tensor in first.items() if name.startswith("generator/")}
    wanted = load_model(tiny_run).generators[0].state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_what_a_run_started_from_stands_in_its_model_and_on_its_card(tiny_run, train_others, tmp_path):
    trained = train_others(tmp_path / "run", from_(tiny_run, training={"epochs": 1, "steps_per_epoch": 1}))
    start, made = load_model(tiny_run), load_model(trained.model)
    facts = made.provenance["started_from"]
    assert (facts["sha256"], facts["weights_sha256"]) == (start.sha256, start.weights_sha256)
    assert [case["case"] for case in facts["training_cases"]] == [
        case["case"] for case in start.provenance["training_cases"]
    ]
    assert dict(card(made))["started from"] == f"T2 from PD, sha256 {start.sha256}"
    assert "started from" not in dict(card(start))
    assert "started_from" not in start.provenance


@pytest.mark.parametrize("given", [{}, {"average": 0.9, "keep": 0.5}])
def test_an_interrupted_run_goes_on_bit_for_bit(tiny_run, train_others, tmp_path, given):
    settings = from_(tiny_run, training=given)
    whole = train_others(tmp_path / "whole", settings)
    with pytest.raises(Interrupted, match="step 2 of 6, saved"):
        train_others(tmp_path / "parts", settings, should_stop=after(2, tmp_path / "parts"))
    again = train_others(tmp_path / "parts", settings)
    assert weights(again.model.parent) == weights(whole.model.parent)
    first = read_json(whole.model / "model.json")["provenance"]["started_from"]
    assert read_json(again.model / "model.json")["provenance"]["started_from"] == first


def test_a_run_that_keeps_nearly_all_of_its_start_hardly_moves(tiny_run, train_others, tmp_path):
    start = load_model(tiny_run)
    moved = {}
    for keep in (0.0, 0.99):
        run = tmp_path / f"keep-{keep}"
        trained = train_others(run, from_(tiny_run, training={"average": 0.5, "keep": keep, "learning_rate": 1e-2}))
        pairs = zip(load_model(trained.model).generators[0].parameters(), start.generators[0].parameters(), strict=True)
        moved[keep] = max(float((made - before).detach().abs().max()) for made, before in pairs)
    assert 0 < moved[0.99] < 0.02 * moved[0.0]


def test_a_run_does_not_go_on_from_another_start(tiny_run, train_others, tmp_path):
    """The weights are part of its identity; where the model lies is not."""
    run = train_others(tmp_path / "run", from_(tiny_run)).model.parent
    shutil.copytree(tiny_run / "model", tmp_path / "moved")
    train_others(run, from_(tmp_path / "moved"))
    for other in (from_(run), resolve("demo", None, TINY)):
        with pytest.raises(CheckpointError, match=r"other settings or data; found .*start\.weights = "):
            train_others(run, other)


def test_the_identity_of_a_run_without_a_start_is_what_it_was(tiny_run, tiny_settings):
    assert "start" not in json.dumps(decisive(tiny_settings))
    manifest = max((tiny_run / "checkpoints").glob("step-*.json"))
    assert "start" not in read_json(manifest)["identity"]


def test_network_grid_contrasts_and_preset_come_from_the_model(tiny_run):
    settings = resolve_run(None, None, {"training": {"start": str(tiny_run)}})
    own = load_model(tiny_run).settings
    assert settings.preset == "demo"
    assert settings.generator == own.generator
    assert settings.prepare == own.prepare
    assert settings.data == own.data
    assert (settings.training.patch, settings.synthesis.stride) == (16, 16)
    assert settings.split == resolve("demo").split
    assert settings.training.epochs == resolve("demo").training.epochs
    named = resolve_run("strong", None, {"training": {"start": str(tiny_run)}, "prepare": {"spacing_mm": 3.0}})
    assert (named.preset, named.generator, named.loss) == ("strong", own.generator, resolve("strong").loss)
    assert named.prepare.spacing_mm == 3.0
    assert resolve_run() == resolve()


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"generator": {"name": "nie"}}, r"generator\.name = 'small', here 'nie'"),
        ({"generator": {"residual": False}}, r"generator\.residual = true, here false"),
        ({"prepare": {"percentile": 99.0}}, r"prepare\.percentile = 99\.9, here 99"),
        ({"context": {"stages": 2}}, r"context\.stages = 1, here 2"),
    ],
)
def test_settings_that_contradict_the_model_are_refused_before_anything_is_written(
    tiny_run, tiny_dataset, tmp_path, tables, words
):
    with pytest.raises(SettingsError, match=f"not the network or the intensities of the model.*{words}"):
        from_(tiny_run, **tables)
    resolved = resolve("demo", None, {**TINY, "training": {**TINY["training"], "start": str(tiny_run)}, **tables})
    with pytest.raises(SettingsError, match=words):
        train(tiny_dataset, tmp_path / "run", resolved)
    assert not (tmp_path / "run").exists()


def test_a_model_that_is_not_there_is_refused_before_anything_is_written(tiny_dataset, tmp_path):
    with pytest.raises(CheckpointError, match="no-such: no model of this name"):
        train(tiny_dataset, tmp_path / "run", preset="demo", training={"start": "no-such"})
    assert not (tmp_path / "run").exists()


def test_scans_that_the_model_was_trained_on_are_named_where_they_are_held_out(tiny_run, tiny_dataset, tmp_path):
    split = read_json(tiny_run / "split.json")
    turned = {"train": split["test"], "validation": split["train"][:1], "test": split["train"][1:]}
    (tmp_path / "split.json").write_text(json.dumps(turned))
    settings = from_(tiny_run, split={"file": str(tmp_path / "split.json")}, training={"epochs": 1})
    names = ", ".join(f"sub-{name}" for name in (*turned["validation"], *turned["test"]))
    with pytest.warns(UserWarning, match=f"trained on scans that are held out here.*: {names}"):
        train(tiny_dataset, tmp_path / "run", settings)


def test_the_command_line_starts_from_a_name(cli, tiny_run, other_dataset, tmp_path, monkeypatch, no_shipped_models):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    shelf = tmp_path / "home" / "unscanned" / "models"
    shutil.copytree(tiny_run / "model", shelf / "pd-t2")
    shelve(shelf, "pd-t2")
    options = [f"--split.{part}={count}" for part, count in TINY["split"].items()]
    options += ["--training.epochs=1", "--training.steps-per-epoch=1", "--training.batch=2", "--training.device=cpu"]
    done = cli("train", other_dataset, "-o", tmp_path / "run", "--from", "pd-t2", *options)
    assert done.returncode == 0, done.stderr
    model = load_model(tmp_path / "run")
    assert model.provenance["started_from"]["name"] == "pd-t2"
    assert model.settings.training.start == "pd-t2"
    assert dict(card(model))["started from"].startswith("pd-t2, T2 from PD, sha256 ")
    shown = cli("train", other_dataset, "-o", tmp_path / "dry", "--from", "pd-t2", *options, "--dry-run")
    assert 'start = "pd-t2"' in shown.stdout
    refused = cli(
        "train", other_dataset, "-o", tmp_path / "other", "--from", "pd-t2", *options, "--generator.name", "nie"
    )
    assert refused.returncode == 2
    assert "generator.name = 'small', here 'nie'" in refused.stderr
    assert cli("train", other_dataset, "-o", tmp_path / "other", "--from", "pd-t9", *options).returncode == 5


def test_scans_are_prepared_on_the_grid_of_the_model_that_the_settings_start_from(
    cli, tiny_run, other_dataset, tmp_path
):
    (tmp_path / "tuned.toml").write_text(f"[training]\nstart = {json.dumps(str(tiny_run / 'model'))}\n")
    done = cli("prepare", other_dataset, "-o", tmp_path / "prepared", "--settings", tmp_path / "tuned.toml")
    assert done.returncode == 0, done.stderr
    case = next(path for path in (tmp_path / "prepared").iterdir() if path.is_dir())
    assert tuple(np.load(case / "source.npy", mmap_mode="r").shape) == tuple(TINY["prepare"]["shape"])


def test_a_model_in_half_precision_is_a_start_too(tiny_run, tiny_dataset, train_others, tmp_path):
    scan = read_volume(tiny_dataset / "sub-001" / "anat" / "sub-001_PDw.nii.gz")
    packed = pack(load_model(tiny_run), tmp_path / "packed", [scan])
    trained = train_others(tmp_path / "run", from_(packed.folder, training={"epochs": 1}))
    made = load_model(trained.model)
    assert {weight.dtype for weight in made.generators[0].parameters()} == {torch.float32}
    assert np.isfinite(made.synthesize(scan).array).all()
