import json
import resource
import shutil
import signal
import time

import numpy as np
import pytest
import safetensors.torch
import tool
import torch

import unscanned
from unscanned.contrast.appearance import measure_appearance
from unscanned.contrast.check import ContrastProfile
from unscanned.errors import CheckpointError, DatasetError, Interrupted, ResourceError, SettingsError
from unscanned.models import generators
from unscanned.report.curves import training_curves
from unscanned.settings import Training, resolve, to_dict, to_toml
from unscanned.synthesis.model_file import load_model
from unscanned.synthesis.reconstruct import reconstruct
from unscanned.training.batches import PatchBatches
from unscanned.training.log import read_log
from unscanned.training.run import check_settings, train
from unscanned.volumes.nifti import read_volume, write_volume


def chained(settings, **context):
    return settings.change(context={"stages": 2, **context})


def weights(run):
    return (run / "model" / "model.safetensors").read_bytes()


def last_checkpoint(folder):
    """The tensors of networks and optimizers at the end, by name."""
    return safetensors.torch.load_file(max((folder / "checkpoints").glob("*.safetensors")))


def events(folder):
    """What the log says, but how long it took."""
    log = read_log(folder / "log.jsonl")
    return [{k: v for k, v in event.items() if k not in ("seconds", "waiting_s")} for event in log]


def assert_same_training(one, other):
    first, second = last_checkpoint(one), last_checkpoint(other)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert events(one) == events(other)


class StopAfter:
    """Asks for a stop at the n-th question."""

    def __init__(self, n):
        self.n = n

    def __call__(self):
        self.n -= 1
        return self.n <= 0


def test_a_run_writes_its_settings_split_log_and_model(tiny_run, tiny_settings):
    assert resolve(None, tiny_run / "settings.toml") == tiny_settings
    assert json.loads((tiny_run / "settings.json").read_text()) == to_dict(tiny_settings)
    split = json.loads((tiny_run / "split.json").read_text())
    assert [len(split[part]) for part in ("train", "validation", "test")] == [2, 1, 1]
    assert len({subject for part in split.values() for subject in part}) == 4
    log = read_log(tiny_run / "log.jsonl")
    steps = [event for event in log if event["event"] == "step"]
    assert [event["step"] for event in steps] == [1, 2, 3, 4, 5, 6]
    assert {"epoch", "d_loss", "g_loss", "adversarial", "l1", "gdl", "seconds", "waiting_s"} <= set(steps[0])
    validations = [event for event in log if event["event"] == "validation"]
    assert [(event["step"], event["epoch"]) for event in validations] == [(3, 1), (6, 2)]
    assert list((tiny_run / "tensorboard").iterdir())


def test_the_model_says_what_it_was_trained_on_and_not_on_the_test_subject(tiny_run):
    provenance = load_model(tiny_run).provenance
    split = json.loads((tiny_run / "split.json").read_text())
    assert [case["case"] for case in provenance["training_cases"]] == [f"sub-{subject}" for subject in split["train"]]
    assert provenance["validation_cases"] == [f"sub-{subject}" for subject in split["validation"]]
    assert not list((tiny_run / "prepared").glob(f"sub-{split['test'][0]}"))


def test_the_model_knows_what_the_scans_of_both_contrasts_looked_like(tiny_run, tiny_dataset):
    profile, split = load_model(tiny_run / "model").profile, json.loads((tiny_run / "split.json").read_text())
    looks = {
        contrast: [
            measure_appearance(scan.array, scan.affine)
            for subject in split["train"]
            for scan in map(read_volume, tiny_dataset.glob(f"sub-{subject}/anat/*_{contrast}w.nii.gz"))
        ]
        for contrast in ("PD", "T2")
    }
    assert profile.scans == profile.made.scans == len(split["train"]) == len(looks["PD"])
    assert profile == ContrastProfile.of(looks["PD"], looks["T2"])
    assert not any(map(profile.is_like_made, looks["PD"]))
    assert all(map(profile.is_like_made, looks["T2"]))


def test_the_first_losses_are_the_sum_that_the_settings_weigh(tiny_run, tiny_settings):
    step = read_log(tiny_run / "log.jsonl")[0]
    voxels, loss = 16**3, tiny_settings.loss
    expected = voxels * (loss.l1 * step["l1"] + loss.gdl * step["gdl"]) + loss.adversarial * step["adversarial"]
    assert step["g_loss"] == pytest.approx(expected, rel=1e-4)


def test_the_same_settings_train_the_same_model_bit_for_bit(tiny_run, tiny_dataset, tiny_settings, tmp_path):
    train(tiny_dataset, tmp_path / "run", tiny_settings)
    assert_same_training(tmp_path / "run", tiny_run)
    assert weights(tmp_path / "run") == weights(tiny_run)


def test_another_seed_trains_another_model(tiny_run, train_tiny, tiny_settings, tmp_path):
    train_tiny(tmp_path / "run", tiny_settings.change(training={"seed": 2}))
    assert weights(tmp_path / "run") != weights(tiny_run)


def test_the_python_interface_trains_the_same(tiny_run, tiny_dataset, tiny_settings, tmp_path):
    (tmp_path / "tiny.toml").write_text(to_toml(tiny_settings))
    trained = unscanned.train(tiny_dataset, tmp_path / "run", preset="demo", file=tmp_path / "tiny.toml")
    assert trained.model == tmp_path / "run" / "model"
    assert trained.failures == {}
    assert weights(tmp_path / "run") == weights(tiny_run)


def test_a_finished_run_is_left_as_it_is(tiny_run, tiny_dataset, tiny_settings, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    before = (tmp_path / "run" / "model" / "model.json").read_bytes()
    trained = train(tiny_dataset, tmp_path / "run", tiny_settings)
    assert (tmp_path / "run" / "model" / "model.json").read_bytes() == before
    assert trained.stages[0]["best"] == load_model(tiny_run).provenance["stages"][0]["best"]
    assert events(tmp_path / "run") == events(tiny_run)


def correct_a_scan(dataset, subject):
    """Replace a subject's source with a brighter centre of the head, as if a wrong file had been put right."""
    (path,) = dataset.rglob(f"sub-{subject}_PDw.nii.gz")
    volume = read_volume(path)
    array = volume.array.copy()
    array[12:20, 12:20, 12:20] *= 1.5
    write_volume(path, array, volume.affine)


@pytest.mark.parametrize("stages", [1, 2])
def test_after_a_scan_was_corrected_the_stages_that_the_messages_name_make_the_model_of_a_new_run(
    stages, tiny_dataset, tiny_settings, tmp_path
):
    dataset, run = shutil.copytree(tiny_dataset, tmp_path / "dataset"), tmp_path / "run"
    settings = tiny_settings.change(
        context={"stages": stages},
        split={"train": 3, "validation": 1, "test": 0},
        training={"epochs": 1, "steps_per_epoch": 2},
    )
    train(dataset, run, settings)
    before = weights(run)
    correct_a_scan(dataset, json.loads((run / "split.json").read_text())["train"][0])
    for _ in range(1 if stages == 1 else 4):
        with pytest.raises(CheckpointError, match="remove this stage's folder") as refusal:
            train(dataset, run, settings)
        for name in ("checkpoints", "best"):  # what this stage made of the scans, and its folds, are left there
            shutil.rmtree(refusal.value.where.parent.parent / name)
    train(dataset, run, settings)
    train(dataset, tmp_path / "new", settings)
    assert weights(run) == weights(tmp_path / "new") != before
    remade, new = (load_model(path).provenance["training_cases"] for path in (run, tmp_path / "new"))
    assert remade == new
    volumes = [sorted(path.name for path in folder.rglob("context/*.npy")) for folder in (run, tmp_path / "new")]
    assert volumes[0] == volumes[1]
    assert len(volumes[0]) == (0 if stages == 1 else 4)


def test_a_model_that_was_damaged_is_written_again_from_the_run(tiny_run, tiny_dataset, tiny_settings, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    (tmp_path / "run" / "model" / "model.safetensors").write_bytes(b"damaged")
    train(tiny_dataset, tmp_path / "run", tiny_settings)
    assert weights(tmp_path / "run") == weights(tiny_run)


@pytest.mark.parametrize("stop", [2, 5, 9])
def test_an_interrupted_run_goes_on_to_the_same_end(tiny_run, tiny_dataset, tiny_settings, tmp_path, stop):
    with pytest.raises(Interrupted):
        train(tiny_dataset, tmp_path / "run", tiny_settings, should_stop=StopAfter(stop))
    assert not (tmp_path / "run" / "model").exists()
    train(tiny_dataset, tmp_path / "run", tiny_settings.change(training={"workers": 1}))
    assert_same_training(tmp_path / "run", tiny_run)
    assert weights(tmp_path / "run") == weights(tiny_run)


RECIPE = {
    "training": {
        "optimizer": "adamw",
        "schedule": "cosine",
        "warmup_steps": 2,
        "final_rate": 0.02,
        "average": 0.9,
        "clip_norm": 100.0,
    },
    "augmentation": {"flip": 0.5, "shift": 0.5},
    "discriminator": {"spectral_norm": True},
    "loss": {"outside": 0.5, "adversarial_after": 3, "gradient_penalty": 0.1},
}


@pytest.fixture(scope="module")
def recipe_run(train_tiny, tiny_settings, tmp_path_factory):
    """A run with all of the recipe on."""
    folder = tmp_path_factory.mktemp("recipe") / "run"
    train_tiny(folder, tiny_settings.change(**RECIPE))
    return folder


@pytest.mark.parametrize("stop", [2, 4, 9])
def test_a_run_with_the_whole_recipe_that_was_interrupted_goes_on_to_the_same_end(
    recipe_run, train_tiny, tiny_settings, tmp_path, stop
):
    settings = tiny_settings.change(**RECIPE)
    with pytest.raises(Interrupted):
        train_tiny(tmp_path / "run", settings, should_stop=StopAfter(stop))
    train_tiny(tmp_path / "run", settings.change(training={"workers": 1}))
    assert_same_training(tmp_path / "run", recipe_run)
    assert weights(tmp_path / "run") == weights(recipe_run)


def test_the_average_of_the_weights_is_validated_and_becomes_the_model(recipe_run):
    best = safetensors.torch.load_file(max((recipe_run / "best").glob("*.safetensors")))
    number = json.loads(max((recipe_run / "best").glob("*.json")).read_text())["step"]
    checkpoint = safetensors.torch.load_file(recipe_run / "checkpoints" / f"step-{number:08d}.safetensors")
    model = safetensors.torch.load_file(recipe_run / "model" / "model.safetensors")
    for name, tensor in best.items():
        key = name.removeprefix("generator/")
        assert torch.equal(tensor, checkpoint[f"average/{key}"])
        assert torch.equal(tensor, model[f"0.{key}"])
    assert any(not torch.equal(tensor, checkpoint[name]) for name, tensor in best.items())


def test_the_adversary_joins_at_its_step(recipe_run):
    steps = [event for event in read_log(recipe_run / "log.jsonl") if event["event"] == "step"]
    assert ["d_loss" in event for event in steps] == [False] * 3 + [True] * 3


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"loss": {"adversarial_after": 6}}, r"loss\.adversarial_after = 6 of 6 steps: the adversary never joins"),
        ({"training": {"warmup_steps": 9}}, r"training\.warmup_steps = 9 of 6 steps: the learning rate never reaches"),
    ],
)
def test_a_training_that_is_too_short_for_a_part_of_its_recipe_says_so_once(
    train_tiny, tiny_settings, tmp_path, tables, words
):
    settings = tiny_settings.change(**tables)
    with pytest.warns(UserWarning, match=words), pytest.raises(Interrupted):
        train_tiny(tmp_path / "run", settings, should_stop=StopAfter(9))
    train_tiny(tmp_path / "run", settings)
    told = [event for event in read_log(tmp_path / "run" / "log.jsonl") if event["event"] == "warning"]
    assert len([event for event in told if "never" in event["message"]]) == 1


def test_a_cosine_belongs_to_its_length_so_more_epochs_are_another_run(recipe_run, train_tiny, tiny_settings, tmp_path):
    run = shutil.copytree(recipe_run, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"training\.epochs = 2, now 3"):
        train_tiny(run, tiny_settings.change(**RECIPE).change(training={"epochs": 3}))


@pytest.mark.slow
def test_a_killed_process_is_resumed_with_other_workers_to_the_same_end(tiny_dataset, tiny_settings, tmp_path):
    longer = tiny_settings.change(training={"steps_per_epoch": 10, "checkpoint_minutes": 1e-4})
    (tmp_path / "settings.toml").write_text(to_toml(longer))
    command = ["train", tiny_dataset, "--preset", "demo", "--settings", tmp_path / "settings.toml"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    with tool.start(*command, "-o", killed, "--training.workers", 1) as process:
        while len(events(killed)) < 13 and process.poll() is None:
            time.sleep(0.005)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (killed / "model").exists()
    train(tiny_dataset, killed, longer.change(training={"workers": 2}))
    train(tiny_dataset, whole, longer)
    assert_same_training(killed, whole)
    assert weights(killed) == weights(whole)


@pytest.mark.filterwarnings("ignore:.*(further from the target|discriminator is always right)")
def test_the_model_is_the_best_epoch_on_the_validation_subject(train_tiny, tiny_settings, tmp_path):
    """A learning rate that ruins the generator makes an early epoch the best."""
    ruinous = tiny_settings.change(training={"epochs": 3, "steps_per_epoch": 1, "learning_rate": 1.0, "seed": 0})
    trained = train_tiny(tmp_path / "run", ruinous)
    validations = [event for event in read_log(tmp_path / "run" / "log.jsonl") if event["event"] == "validation"]
    best = max(validations, key=lambda event: event["psnr"])
    assert best["epoch"] < 3
    assert trained.stages[0]["best"]["epoch"] == best["epoch"]
    marks = [event["best"] for event in validations]
    assert max(index for index, mark in enumerate(marks) if mark) == best["epoch"] - 1
    saved = safetensors.torch.load_file(max((tmp_path / "run" / "best").glob("*.safetensors")))
    model = safetensors.torch.load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert all(torch.equal(model[f"0.{name.removeprefix('generator/')}"], tensor) for name, tensor in saved.items())


def test_without_validation_subjects_the_last_epoch_is_the_model(train_tiny, tiny_settings, tmp_path):
    trained = train_tiny(tmp_path / "run", tiny_settings.change(split={"validation": 0}))
    assert trained.stages[0]["best"]["epoch"] == 2
    assert training_curves({"run": tmp_path / "run"}).startswith(b"\x89PNG")


def test_epochs_added_later_are_those_of_a_longer_run(tiny_run, train_tiny, tiny_settings, tmp_path):
    train_tiny(tmp_path / "run", tiny_settings.change(training={"epochs": 1}))
    short = weights(tmp_path / "run")
    train_tiny(tmp_path / "run", tiny_settings)
    assert_same_training(tmp_path / "run", tiny_run)
    assert weights(tmp_path / "run") == weights(tiny_run) != short


def test_fewer_epochs_than_a_run_has_had_are_refused(tiny_run, tiny_dataset, tiny_settings, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"beyond the last epoch; found step 6, expected at most 3"):
        train(tiny_dataset, run, tiny_settings.change(training={"epochs": 1}))
    assert weights(run) == weights(tiny_run)
    train(tiny_dataset, run, tiny_settings)
    assert_same_training(run, tiny_run)


@pytest.mark.parametrize("content", ["", "{", "[1]", "3", '{"train": 1}', '{"data": 2}'])
@pytest.mark.parametrize("name", ["split.json", "settings.json"])
def test_a_damaged_file_of_the_run_is_refused_by_its_name(
    name, content, tiny_run, tiny_dataset, tiny_settings, tmp_path
):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    (run / name).write_text(content)
    with pytest.raises(CheckpointError, match=r"cannot be read|on other subjects|other settings"):
        train(tiny_dataset, run, tiny_settings)


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"training": {"batch": 3}}, r"training\.batch = 2, now 3"),
        ({"loss": {"gdl": 0.0}}, r"loss\.gdl = 1\.0, now 0\.0"),
        ({"generator": {"residual": False}}, r"generator\.residual = true, now false"),
        ({"synthesis": {"mode": "volume"}}, r"synthesis\.mode = 'patches', now 'volume'"),
        ({"split": {"seed": 5}}, "other subjects"),
    ],
)
def test_another_run_in_the_same_folder_is_refused_and_changes_nothing(
    tiny_run, tiny_dataset, tiny_settings, tmp_path, tables, words
):
    shutil.copytree(tiny_run, tmp_path / "run")
    names = ("split.json", "log.jsonl", "model/model.json", "model/model.safetensors")
    before = [(tmp_path / "run" / name).read_bytes() for name in names]
    with pytest.raises(CheckpointError, match=words):
        train(tiny_dataset, tmp_path / "run", tiny_settings.change(**tables))
    assert [(tmp_path / "run" / name).read_bytes() for name in names] == before


@pytest.mark.parametrize("tables", [{"generator": {"name": "nei"}}, {"discriminator": {"name": "patchgan"}}])
def test_a_network_that_is_not_known_leaves_no_folder_behind(tiny_dataset, tiny_settings, tmp_path, tables):
    with pytest.raises(SettingsError, match="nie, small"):
        train(tiny_dataset, tmp_path / "run", tiny_settings.change(**tables))
    assert not (tmp_path / "run").exists()


def test_patches_that_a_u_net_cannot_halve_are_refused_before_any_work(tiny_dataset, tiny_settings, tmp_path):
    pytest.importorskip("monai")
    odd = tiny_settings.change(generator={"name": "unet"}, training={"patch": 12, "validation_stride": 12})
    with pytest.raises(SettingsError, match=r"training\.patch: .*found 12 with .*expected a multiple of 8"):
        train(tiny_dataset, tmp_path / "run", odd)
    wide = tiny_settings.change(generator={"name": "unet"}, training={"patch": 16, "context": 3})
    with pytest.raises(SettingsError, match=r"found 16 and 3 around it with .*expected a multiple of 8 in all"):
        train(tiny_dataset, tmp_path / "run", wide)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("generator", "training"),
    [
        ({"name": "unet"}, {"patch": 8, "batch": 1}),
        ({"name": "segresnet"}, {"patch": 8, "batch": 1}),
        ({"name": "segresnet"}, {"patch": 8, "batch": 3, "accumulate": 2}),
        ({"name": "segresnet", "options": {"norm": "instance"}}, {"patch": 8, "batch": 4}),
        (
            {"name": "segresnet", "options": {"blocks_down": [1, 1, 1, 1, 1], "blocks_up": [1, 1, 1, 1]}},
            {"patch": 16, "batch": 1},
        ),
    ],
)
def test_patches_of_which_a_norm_would_get_one_value_are_refused_before_any_work(
    tiny_dataset, tiny_settings, tmp_path, generator, training
):
    pytest.importorskip("monai")
    edge = training["patch"]
    tables = {"generator": generator, "training": {**training, "validation_stride": 8}, "synthesis": {"stride": 8}}
    wrong = tiny_settings.change(**tables)
    with pytest.raises(SettingsError, match=rf"training\.patch: .*found {edge} with .*expected at least {2 * edge}"):
        train(tiny_dataset, tmp_path / "run", wrong)
    assert not (tmp_path / "run").exists()


def test_a_norm_that_gets_more_than_one_value_is_not_refused(tiny_settings):
    pytest.importorskip("monai")
    for options, batch in (({}, 2), ({"norm": "group"}, 1)):
        generator = {"name": "segresnet", "options": {"filters": 8} | options}
        training = {"patch": 8, "batch": batch, "validation_stride": 8}
        stride = {"stride": 8}
        check_settings(tiny_settings.change(generator=generator, training=training, synthesis=stride, context=stride))


@pytest.mark.parametrize(
    ("tables", "reason"),
    [
        ({"generator": {"name": "unet", "convolution": "spectral"}}, r"no pass through .*expected auto or plain"),
        ({"generator": {"convolution": "spectral"}, "loss": {"adversarial": 0.0}, "training": {"patch": 15}}, "even"),
    ],
)
def test_a_way_to_convolve_that_cannot_be_is_refused_before_any_work(
    tiny_dataset, tiny_settings, tmp_path, tables, reason
):
    if tables["generator"].get("name") == "unet":
        pytest.importorskip("monai")
    with pytest.raises(SettingsError, match=reason):
        train(tiny_dataset, tmp_path / "run", tiny_settings.change(**tables))
    assert not (tmp_path / "run").exists()


def test_too_few_subjects_are_refused_with_their_number(tiny_dataset, tiny_settings, tmp_path):
    with pytest.raises(DatasetError, match="4 subjects"):
        train(tiny_dataset, tmp_path / "run", tiny_settings.change(split={"train": 9}))


def test_a_subject_that_is_refused_is_left_out_and_named(tiny_dataset, tiny_settings, tiny_run, tmp_path):
    shutil.copytree(tiny_dataset, tmp_path / "dataset")
    bad = json.loads((tiny_run / "split.json").read_text())["train"][0]
    scan = next((tmp_path / "dataset").rglob(f"sub-{bad}_PDw.nii.gz"))
    scan.write_bytes(scan.read_bytes()[:3000])
    trained = train(tmp_path / "dataset", tmp_path / "run", tiny_settings)
    assert list(trained.failures) == [f"sub-{bad}"]
    provenance = load_model(tmp_path / "run").provenance
    assert [case["case"] for case in provenance["training_cases"]] != []
    assert scan.name in provenance["left_out"][f"sub-{bad}"]


def test_a_subject_whose_file_is_not_there_is_left_out_and_named(tiny_dataset, tiny_settings, tiny_run, tmp_path):
    dataset = shutil.copytree(tiny_dataset, tmp_path / "dataset")
    lost = json.loads((tiny_run / "split.json").read_text())["train"][0]
    (scan,) = dataset.rglob(f"sub-{lost}_T2w.nii.gz")
    scan.unlink()
    scan.symlink_to(dataset / "not-fetched")  # as in a dataset of git-annex
    trained = train(dataset, tmp_path / "run", tiny_settings)
    assert list(trained.failures) == [f"sub-{lost}"]
    assert scan.name in str(trained.failures[f"sub-{lost}"])


def test_validation_subjects_that_are_all_refused_end_it_before_hours_of_work(
    tiny_dataset, tiny_settings, tiny_run, tmp_path
):
    dataset = shutil.copytree(tiny_dataset, tmp_path / "dataset")
    bad = json.loads((tiny_run / "split.json").read_text())["validation"][0]
    (scan,) = dataset.rglob(f"sub-{bad}_T2w.nii.gz")
    scan.write_bytes(scan.read_bytes()[:3000])
    with pytest.raises(DatasetError, match=rf"no validation subject is usable.*{scan.name}.*split\.validation to 0"):
        train(dataset, tmp_path / "run", tiny_settings)


def test_more_files_than_may_be_open_are_allowed_or_refused_with_their_number(
    train_tiny, tiny_settings, tmp_path, monkeypatch
):
    brief = tiny_settings.change(training={"epochs": 1, "steps_per_epoch": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
        train_tiny(tmp_path / "run", brief)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 3 * 3 + 256  # three volumes of three cases
        train_tiny(tmp_path / "chain", chained(brief))
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 4 * 3 + 256

        def refuse(*limits):
            raise ValueError("not allowed to raise maximum limit")

        monkeypatch.setattr(resource, "getrlimit", lambda _: (200, 200))
        monkeypatch.setattr(resource, "setrlimit", refuse)
        with pytest.raises(ResourceError, match=r"as many open files.*found 200 open files, and no more, expected 265"):
            train_tiny(tmp_path / "other", brief)
    finally:
        monkeypatch.undo()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_training_without_the_adversary_has_no_discriminator(train_tiny, tiny_settings, tmp_path):
    train_tiny(tmp_path / "run", tiny_settings.change(loss={"adversarial": 0.0}))
    assert not any(name.startswith("discriminator") for name in last_checkpoint(tmp_path / "run"))
    assert not {"d_loss", "adversarial"} & set(events(tmp_path / "run")[0])


@pytest.fixture(scope="module")
def chain_run(train_tiny, tiny_settings, tmp_path_factory):
    """A chain of two stages, the second on volumes out of fold."""
    folder = tmp_path_factory.mktemp("chain") / "run"
    train_tiny(folder, chained(tiny_settings))
    return folder


def manifest(folder):
    return json.loads(max((folder / "best").glob("*.json")).read_text())


def stage_network(folder, in_channels=1):
    network = generators.build("small", in_channels=in_channels, residual=True)
    tensors = safetensors.torch.load_file(max((folder / "best").glob("*.safetensors")))
    network.load_state_dict({name.removeprefix("generator/"): tensor for name, tensor in tensors.items()})
    return network.eval()


def context_volume(run, case):
    return np.load(next((run / "stage-1" / "context").glob(f"{case}_*.npy")))


@pytest.fixture
def prepared_source(tiny_prepared):
    """A case as the first stage of a run sees it."""

    def read(run, case):
        constants = load_model(run).normalization.source
        return constants.standardize(np.load(tiny_prepared / case / "source.npy"))[None]

    return read


def test_a_fold_never_trains_on_the_subject_that_it_predicts(chain_run, prepared_source):
    split = json.loads((chain_run / "split.json").read_text())
    subjects = [f"sub-{subject}" for subject in split["train"]]
    for fold in (1, 2):
        folder = chain_run / "stage-1" / f"fold-{fold}"
        trained_on = manifest(folder)["identity"]["training subjects"]["cases"]
        outside = [case for case in subjects if case not in trained_on]
        assert len(outside) == len(trained_on) == 1
        expected = reconstruct(prepared_source(chain_run, outside[0]), stage_network(folder), patch=16, stride=16)
        np.testing.assert_allclose(context_volume(chain_run, outside[0]), expected, atol=1e-5)


def test_a_validation_subject_is_predicted_by_the_first_stage_itself(chain_run, prepared_source):
    case = "sub-" + json.loads((chain_run / "split.json").read_text())["validation"][0]
    network = load_model(chain_run).generators[0]
    expected = reconstruct(prepared_source(chain_run, case), network, patch=16, stride=16)
    np.testing.assert_allclose(context_volume(chain_run, case), expected, atol=1e-5)


def test_the_second_stage_trains_on_source_and_context_and_the_model_holds_both(chain_run, tiny_run):
    model = load_model(chain_run)
    assert [network.generator.convolutions[0].in_channels for network in model.generators] == [1, 2]
    assert len(model.provenance["stages"]) == 2
    assert events(chain_run / "stage-1") == events(tiny_run)
    assert len([event for event in events(chain_run / "stage-2") if event["event"] == "step"]) == 6


@pytest.mark.parametrize("options", [{}, {"input": "patch", "training_input": "in_sample"}])
def test_a_stage_does_not_go_on_with_what_another_first_stage_makes(options, train_tiny, tiny_settings, tmp_path):
    settings = chained(tiny_settings, **options)
    run, longer = tmp_path / "run", tmp_path / "longer"
    train_tiny(run, settings)
    train_tiny(longer, settings.change(training={"epochs": 1}))
    facts = [json.loads((folder / "model" / "model.json").read_text()) for folder in (run, longer)]
    assert [model["provenance"]["stages"][0]["best"]["epoch"] for model in facts] == [2, 1]
    with pytest.raises(CheckpointError, match=r"earlier stages'.* now .*remove this stage's folder"):
        train_tiny(longer, settings)
    shutil.rmtree(longer / "stage-2")
    train_tiny(longer, settings)
    assert weights(longer) == weights(run)


def test_in_sample_takes_the_volumes_of_the_first_stage_and_trains_no_fold(
    train_tiny, prepared_source, tiny_settings, tmp_path
):
    run = tmp_path / "run"
    train_tiny(run, chained(tiny_settings, training_input="in_sample"))
    assert not list((run / "stage-1").glob("fold-*"))
    case = "sub-" + json.loads((run / "split.json").read_text())["train"][0]
    expected = reconstruct(prepared_source(run, case), load_model(run).generators[0], patch=16, stride=16)
    np.testing.assert_allclose(context_volume(run, case), expected, atol=1e-5)


def test_context_on_patches_needs_no_volume_between_the_stages(train_tiny, tiny_settings, tmp_path):
    run = tmp_path / "run"
    train_tiny(run, chained(tiny_settings, input="patch", training_input="in_sample"))
    assert not (run / "stage-1" / "context").exists()
    assert not list((run / "stage-1").glob("fold-*"))
    first, _ = load_model(run).generators
    kept = safetensors.torch.load_file(max((run / "stage-1" / "best").glob("*.safetensors")))
    for name, tensor in first.state_dict().items():  # the running statistics too: it is used as it was chosen
        assert torch.equal(tensor, kept[f"generator/{name}"]), name


def test_a_first_stage_that_is_there_already_is_the_one_that_would_be_trained(
    chain_run, tiny_run, train_tiny, tiny_settings, tmp_path
):
    train_tiny(tmp_path / "run", chained(tiny_settings), first_stage=tiny_run / "model")
    assert not (tmp_path / "run" / "stage-1" / "log.jsonl").exists()
    assert weights(tmp_path / "run") == weights(chain_run)
    assert_same_training(tmp_path / "run" / "stage-2", chain_run / "stage-2")


@pytest.mark.parametrize("tables", [{"training": {"seed": 2}}, {"split": {"seed": 5}}, {"loss": {"gdl": 0.0}}])
def test_a_first_stage_of_another_training_is_refused(tiny_run, tiny_dataset, tiny_settings, tmp_path, tables):
    other = chained(tiny_settings.change(**tables))
    with pytest.raises(CheckpointError, match="first stage"):
        train(tiny_dataset, tmp_path / "run", other, first_stage=tiny_run / "model")


@pytest.mark.parametrize("stop", [8, 28])
def test_a_chain_that_was_interrupted_anywhere_goes_on_to_the_same_end(
    chain_run, train_tiny, tiny_settings, tmp_path, stop
):
    with pytest.raises(Interrupted):
        train_tiny(tmp_path / "run", chained(tiny_settings), should_stop=StopAfter(stop))
    train_tiny(tmp_path / "run", chained(tiny_settings))
    assert weights(tmp_path / "run") == weights(chain_run)
    for stage in ("stage-1", "stage-1/fold-1", "stage-1/fold-2", "stage-2"):
        assert_same_training(tmp_path / "run" / stage, chain_run / stage)


def test_more_folds_than_subjects_are_refused_with_what_to_do(train_tiny, tiny_settings, tmp_path):
    with pytest.raises(DatasetError, match=r"context\.folds lower"):
        train_tiny(tmp_path / "run", chained(tiny_settings, folds=3))


def test_the_batches_of_a_run_are_those_of_its_seed(tiny_run, tiny_settings):
    """The log's first L1 is that of the batch that `PatchBatches` cuts, seen by the fresh generator."""
    from unscanned.training.prepare import Case

    model = load_model(tiny_run)
    split = json.loads((tiny_run / "split.json").read_text())
    cases = [Case(f"sub-{subject}", subject, tiny_run / "prepared" / f"sub-{subject}") for subject in split["train"]]
    seed = 1000 * tiny_settings.training.seed + 1
    batches = PatchBatches(cases, model.normalization, Training(patch=16, batch=2, seed=seed, min_head=0.1))
    torch.manual_seed(seed)
    source, target = batches(0)
    made = generators.build("small", residual=True)(source)
    assert read_log(tiny_run / "log.jsonl")[0]["l1"] == pytest.approx((made - target).abs().mean().item(), rel=1e-4)


def test_a_dataset_that_is_refused_leaves_no_settings_that_would_refuse_the_corrected_call(
    tiny_dataset, tiny_settings, tmp_path
):
    for wrong in (tiny_settings.change(data={"source": "FLAIR"}), tiny_settings.change(split={"train": 50})):
        with pytest.raises(DatasetError):
            train(tiny_dataset, tmp_path / "run", wrong)
    train(tiny_dataset, tmp_path / "run", tiny_settings.change(training={"epochs": 1}))
