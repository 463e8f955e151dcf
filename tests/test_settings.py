import math
import tomllib

import pytest

from unscanned.errors import SettingsError
from unscanned.files import short_digest
from unscanned.settings import (
    decisive,
    difference,
    preset_names,
    read_settings,
    resolve,
    to_dict,
    to_toml,
    without_effect,
)


def write(tmp_path, text):
    path = tmp_path / "settings.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_presets_are_the_arms_of_the_reference_the_baseline_the_recipes_and_the_demo():
    assert preset_names() == ["adv", "adv-gdl", "demo", "resgan", "resgan-acm", "strong", "strong-gan", "unet"]


def test_the_presets_differ_in_nothing_but_what_their_arm_is_about():
    adv, gdl, resgan, acm = map(resolve, ("adv", "adv-gdl", "resgan", "resgan-acm"))
    assert difference(decisive(adv), decisive(gdl)) == "loss.gdl = 0.0, now 1.0"
    assert (adv.training.epochs, gdl.training.epochs, resgan.training.epochs) == (42, 80, 42)
    assert difference(decisive(gdl), decisive(resgan)) == "generator.residual = false, now true"
    assert difference(decisive(resgan), decisive(acm)) == "context.stages = 1, now 2"


def test_the_defaults_are_those_of_the_specification():
    s = resolve("resgan")
    assert (s.data.source, s.data.target) == ("PD", "T2")
    assert s.prepare.shape == (224, 224, 128)
    assert (s.prepare.spacing_mm, s.prepare.percentile) == (None, 99.9)
    assert (s.split.train, s.split.validation, s.split.test) == (60, 3, 26)
    assert (s.loss.adversarial, s.loss.l1, s.loss.gdl, s.loss.reduction) == (0.5, 1.0, 1.0, "sum")
    t = s.training
    assert (t.batch, t.patch, t.learning_rate, t.beta1, t.beta2) == (7, 32, 1e-4, 0.5, 0.999)
    assert (t.validation_stride, s.synthesis.stride) == (32, 8)
    acm = resolve("resgan-acm").context
    assert (acm.stages, acm.input, acm.training_input) == (2, "volume", "out_of_fold")


def test_nothing_of_the_reference_preset_changes_unnoticed():
    assert to_dict(resolve("resgan")) == {
        "preset": "resgan",
        "data": {"source": "PD", "target": "T2", "layout": "auto"},
        "prepare": {
            "shape": [224, 224, 128],
            "spacing_mm": None,
            "resample": False,
            "percentile": 99.9,
            "averages": False,
            "precision": "float32",
        },
        "split": {"train": 60, "validation": 3, "test": 26, "seed": 0, "file": None, "folds": 1, "fold": 1},
        "generator": {
            "name": "nie",
            "options": {},
            "residual": True,
            "slope": 0.2,
            "initialization": "xavier_uniform",
            "output": "linear",
            "convolution": "auto",
        },
        "discriminator": {
            "name": "nie",
            "options": {},
            "slope": 0.2,
            "initialization": "xavier_uniform",
            "spectral_norm": False,
        },
        "loss": {
            "adversarial": 0.5,
            "criterion": "cross_entropy",
            "l1": 1.0,
            "gdl": 1.0,
            "ssim": 0.0,
            "reduction": "sum",
            "outside": 1.0,
            "adversarial_after": 0,
            "gradient_penalty": 0.0,
            "on_collapse": "end",
        },
        "training": {
            "epochs": 42,
            "steps_per_epoch": None,
            "batch": 7,
            "accumulate": 1,
            "offload": False,
            "patch": 32,
            "margin": 0,
            "min_head": 0.0,
            "optimizer": "adam",
            "learning_rate": 1e-4,
            "discriminator_rate": 1.0,
            "schedule": "constant",
            "warmup_steps": 0,
            "final_rate": 0.0,
            "weight_decay": 0.01,
            "clip_norm": None,
            "average": 0.0,
            "beta1": 0.5,
            "beta2": 0.999,
            "order": "discriminator_first",
            "seed": 0,
            "workers": 0,
            "validation_stride": 32,
            "checkpoint_minutes": 5.0,
            "device": "auto",
            "devices": 1,
            "threads": None,
            "precision": "float32",
            "start": None,
            "keep": 0.0,
        },
        "augmentation": {
            "shift": 0.0,
            "flip": 0.0,
            "intensity": 0.0,
            "field": 0.0,
            "noise": 0.0,
            "blur": 0.0,
            "resolution": 0.0,
        },
        "simulated": {
            "share": 0.0,
            "labels": None,
            "seed": 0,
            "pool": 8,
            "every": 10,
            "noise": [0.012, 0.1],
            "receive": [0.005, 0.2],
            "thickness_mm": [0.8, 6.0],
            "volumetric": 0.45,
            "deformation_mm": 3.5,
            "tilt_deg": 3.0,
            "brain": 0.35,
            "defaced": 0.2,
            "cropped": 0.25,
            "ghosts": 0.3,
        },
        "context": {"stages": 1, "input": "volume", "training_input": "out_of_fold", "folds": 2, "stride": 8},
        "synthesis": {
            "mode": "patches",
            "crop": "auto",
            "stride": 8,
            "clip": "minimum",
            "blend": "equal",
            "mirror": False,
            "detail": "none",
            "batch": None,
            "memory_mib": None,
            "precision": "float32",
        },
    }


def test_every_preset_clips_and_what_an_older_version_wrote_does_not():
    assert {resolve(name).synthesis.clip for name in preset_names()} == {"minimum"}
    assert read_settings({"synthesis": {"stride": 8}}, where="model.json").synthesis.clip == "none"
    assert "synthesis" not in decisive(resolve("resgan"))  # a run that was begun before goes on


def test_options_override_the_file_and_the_file_overrides_the_preset(tmp_path):
    path = write(tmp_path, "[training]\nepochs = 5\nbatch = 3\n")
    settings = resolve("adv-gdl", path, {"training": {"epochs": 2}})
    assert (settings.training.epochs, settings.training.batch) == (2, 3)
    assert resolve("adv-gdl").training.epochs == 80


@pytest.mark.parametrize(
    ("overrides", "suggestion"),
    [
        ({"training": {"epoch": 3}}, "epochs"),
        ({"trainig": {"epochs": 3}}, "training"),
        ({"loss": {"gld": 1.0}}, "gdl"),
        ({"prepare": {"spacing": 1.0}}, "spacing_mm"),
    ],
)
def test_an_unknown_key_is_refused_and_the_near_one_suggested(overrides, suggestion):
    with pytest.raises(SettingsError, match=rf"Did you mean {suggestion}\?"):
        resolve("resgan", overrides=overrides)


def test_the_refusal_of_a_key_names_the_file_and_the_key(tmp_path):
    path = write(tmp_path, "[generator]\nresiduel = true\n")
    with pytest.raises(SettingsError) as refusal:
        resolve("resgan", path)
    assert str(path) in str(refusal.value)
    assert "generator.residuel" in str(refusal.value)


def test_a_file_may_name_the_preset_where_nothing_else_does(tmp_path):
    path = write(tmp_path, 'preset = "strong"\n[training]\nepochs = 5\n')
    settings = resolve(None, path)
    assert (settings.preset, settings.generator.name, settings.training.epochs) == ("strong", "segresnet", 5)
    assert resolve("adv", path).generator == resolve("adv").generator
    assert resolve("adv", path).preset == "adv"
    assert resolve() == resolve("resgan") == resolve(None, write(tmp_path, ""))
    for wrong in ('"strog"', '["strong"]', "7"):
        with pytest.raises(SettingsError, match="no such preset"):
            resolve(None, write(tmp_path, f"preset = {wrong}\n"))


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(SettingsError, match=r"resgan-acm, strong, strong-gan, unet\. Did you mean resgan\?"):
        resolve("resgn")


@pytest.mark.parametrize(
    "overrides",
    [
        {"training": {"epochs": "3"}},
        {"training": {"epochs": 3.0}},
        {"training": {"epochs": True}},
        {"training": {"device": None}},
        {"generator": {"residual": 1}},
        {"loss": {"reduction": "median"}},
        {"prepare": {"shape": [32, 32]}},
        {"prepare": {"shape": [32, 32, "32"]}},
        {"prepare": {"spacing_mm": "1"}},
        {"training": 3},
    ],
)
def test_a_value_of_the_wrong_type_is_refused(overrides):
    with pytest.raises(SettingsError):
        resolve("resgan", overrides=overrides)


@pytest.mark.parametrize("value", [{"deep": 1}, ["a"], None])
def test_an_option_of_an_architecture_of_no_kind_that_there_is_is_named_as_it_is_typed(value):
    kinds = "true or false or integer or number or text or list of integer"
    where = rf"options: generator\.options\.filters: a value of the wrong kind; found .*, expected {kinds}$"
    with pytest.raises(SettingsError, match=where):
        resolve("resgan", overrides={"generator": {"options": {"filters": value}}})


def test_an_integer_serves_where_a_real_number_is_asked_for():
    value = resolve("resgan", overrides={"loss": {"l1": 2}}).loss.l1
    assert value == 2.0
    assert isinstance(value, float)


@pytest.mark.parametrize(
    "overrides",
    [
        {"training": {"epochs": 0}},
        {"training": {"learning_rate": math.nan}},
        {"training": {"learning_rate": math.inf}},
        {"training": {"beta1": 1.0}},
        {"training": {"beta2": -0.1}},
        {"training": {"seed": -1}},
        {"training": {"workers": -1}},
        {"training": {"min_head": 1.5}},
        {"training": {"patch": 16, "validation_stride": 32}},
        {"loss": {"l1": -1.0}},
        {"generator": {"slope": -0.1}},
        {"discriminator": {"slope": -0.1}},
        {"loss": {"gdl": math.nan}},
        {"prepare": {"shape": [32, 0, 32]}},
        {"prepare": {"spacing_mm": -1.0}},
        {"prepare": {"percentile": 101.0}},
        {"split": {"train": 0}},
        {"split": {"validation": -1}},
        {"context": {"stride": 64}},
        {"context": {"stages": 2, "folds": 1}},
        {"context": {"stages": 2, "input": "patch"}},
        {"synthesis": {"stride": 33}},
    ],
)
def test_a_value_that_no_run_could_use_is_refused_before_anything_is_written(overrides):
    with pytest.raises(SettingsError):
        resolve("resgan", overrides=overrides)


def test_a_patch_that_the_discriminator_cannot_halve_serves_without_one():
    settings = resolve(
        "resgan", overrides={"training": {"patch": 20, "validation_stride": 20}, "loss": {"adversarial": 0.0}}
    )
    assert settings.training.patch == 20


@pytest.mark.parametrize("preset", preset_names())
def test_the_written_settings_are_read_back_the_same(tmp_path, preset):
    settings = resolve(
        preset, overrides={"split": {"file": 'a "split" \\ für 磁共振 🧠.json'}, "training": {"threads": 2}}
    )
    path = write(tmp_path, to_toml(settings))
    assert resolve(None, path) == settings
    assert resolve("adv", path) == settings.model_copy(update={"preset": "adv"})  # nothing but the name is adv's


def test_the_written_settings_say_what_is_unset():
    text = to_toml(resolve("resgan"))
    assert "# spacing_mm is unset" in text
    assert tomllib.loads(text)["prepare"]["shape"] == [224, 224, 128]


@pytest.mark.parametrize("content", ["epochs =", "[training]\nepochs = 1\nepochs = 2", "\x00"])
def test_a_file_that_is_not_toml_is_refused_by_its_name(tmp_path, content):
    path = write(tmp_path, content)
    with pytest.raises(SettingsError, match=r"settings\.toml"):
        resolve("resgan", path)


def test_a_missing_file_is_refused_by_its_name(tmp_path):
    with pytest.raises(SettingsError, match=r"nothing\.toml"):
        resolve("resgan", tmp_path / "nothing.toml")


def test_the_digest_changes_with_every_single_setting():
    base = resolve("resgan-acm")
    seen = {short_digest(to_dict(base))}
    others = 0
    for table, current in base:
        for field in type(current).model_fields if table != "preset" else ():
            other = base.model_copy(update={table: current.model_copy(update={field: "another"})})
            seen.add(short_digest(other.model_dump(mode="json", warnings=False)))
            others += 1
    assert len(seen) == others + 1


def test_what_a_step_does_not_depend_on_is_not_decisive():
    base = decisive(resolve("resgan"))
    same = {
        "training": {"epochs": 3, "workers": 2, "checkpoint_minutes": 1.0, "device": "cpu", "threads": 1},
        "generator": {"convolution": "plain"},
        "data": {"layout": "bids"},
        "split": {"test": 1},
    }
    assert decisive(resolve("resgan", overrides=same)) == base


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"training": {"batch": 3}}, "training.batch = 7, now 3"),
        ({"loss": {"gdl": 0.0}}, "loss.gdl = 1.0, now 0.0"),
        ({"prepare": {"shape": [64, 64, 64]}}, "prepare.shape = [224, 224, 128], now [64, 64, 64]"),
    ],
)
def test_a_decisive_difference_is_told_in_words(overrides, words):
    assert difference(decisive(resolve("resgan")), decisive(resolve("resgan", overrides=overrides))) == words


def test_settings_are_read_back_from_their_mapping():
    settings = resolve("demo")
    assert read_settings(to_dict(settings), where="here") == settings


@pytest.mark.parametrize(
    ("table", "key", "value", "words"),
    [
        ("training", "average", 1.0, r"training\.average: must be below 1"),
        ("training", "final_rate", 1.5, r"training\.final_rate: must be at most 1"),
        ("training", "clip_norm", 0.0, r"training\.clip_norm: must be positive"),
        ("augmentation", "shift", 0.6, r"augmentation\.shift: must be at most 0\.5"),
        ("augmentation", "flip", 2.0, r"augmentation\.flip: must be at most 1"),
        ("augmentation", "field", 1.0, r"augmentation\.field: must be below 1"),
        ("augmentation", "blur", 5.0, r"leaves nothing of a patch; found 5 voxels .* = 32, expected at most 4"),
        ("augmentation", "resolution", 9.0, r"leaves nothing of a patch; found 9 voxels .* = 32, expected at most 8"),
        ("augmentation", "intensity", 2.0, r"intensity: .*nothing of a patch; found 2, expected at most 1\.6, a power"),
        ("augmentation", "field", 0.99, r"field: .*nothing of a patch; found 0\.99, expected at most 0\.9, a tenth"),
        ("augmentation", "noise", 0.99, r"noise: .*nothing of a patch; found 0\.99, expected at most 0\.5, half of"),
    ],
)
def test_a_recipe_out_of_bounds_is_refused(table, key, value, words):
    with pytest.raises(SettingsError, match=words):
        resolve("resgan", overrides={table: {key: value}})


@pytest.mark.parametrize(
    "augmentation",
    [
        {"noise": 0.316, "blur": 1.5, "resolution": 2.0, "intensity": 0.41},  # nnU-Net: variance, sigma, zoom, gamma
        {"noise": 0.25, "blur": 2.0, "resolution": 5.0, "intensity": 0.3, "field": 0.71},  # TorchIO
        {"resolution": 8.0, "intensity": 1.5, "field": 0.878},  # SynthSeg, three standard deviations of its normals
        {"intensity": 1.505},  # MONAI: gamma 4.5
        {"noise": 0.5, "blur": 4.0, "resolution": 8.0, "intensity": 1.6, "field": 0.9},
    ],
)
def test_augmentation_as_strong_as_that_of_other_packages_is_allowed(augmentation):
    resolve("strong", overrides={"augmentation": augmentation})


def test_a_stored_augmentation_that_is_refused_today_is_still_read():
    assert read_settings({"augmentation": {"noise": 0.99}}, where="model.json").augmentation.noise == 0.99


def test_the_gradient_difference_alone_leaves_too_much_open():
    with pytest.raises(SettingsError, match=r"loss\.gdl: the gradient difference alone .*such as loss\.l1"):
        resolve("strong", overrides={"loss": {"l1": 0.0}})
    for term in ("l1", "ssim", "adversarial"):
        resolve("strong", overrides={"loss": {"l1": 0.0, term: 0.5}})


@pytest.mark.parametrize(("key", "value"), [("adversarial_after", 5), ("on_collapse", "regression")])
def test_an_adversary_that_can_be_missing_needs_another_term(key, value):
    loss = {"l1": 0.0, "gdl": 0.0, key: value}
    with pytest.raises(SettingsError, match=rf"loss\.{key}: without its adversary the loss has no term"):
        resolve("resgan", overrides={"loss": loss})
    resolve("resgan", overrides={"loss": {**loss, "gdl": 1.0}})


@pytest.mark.parametrize(
    ("preset", "overrides", "idle"),
    [
        ("strong", {}, {}),
        ("strong", {"loss": {"gradient_penalty": 10.0}}, {"loss.gradient_penalty": 10.0}),
        (
            "unet",
            {"discriminator": {"spectral_norm": True, "slope": 0.2}, "training": {"order": "generator_first"}},
            {"discriminator.spectral_norm": True, "training.order": "generator_first"},
        ),
        ("strong", {"loss": {"gradient_penalty": 10.0, "adversarial": 0.1}}, {}),
        ("strong-gan", {"loss": {"adversarial": 0.0}}, {}),  # the rest is the preset's own
        ("strong-gan", {"loss": {"adversarial": 0.0, "gradient_penalty": 1.0}}, {"loss.gradient_penalty": 1.0}),
        ("strong-gan", {"loss": {"adversarial": 0.0, "gradient_penalty": 0.0}}, {}),
        ("strong", {"simulated": {"labels": "maps", "pool": 4}}, {"simulated.labels": "maps", "simulated.pool": 4}),
        ("strong", {"simulated": {"labels": "maps", "share": 0.5}}, {}),
        ("strong", {"training": {"schedule": "constant"}}, {}),
        ("resgan", {"training": {"final_rate": 0.1}}, {"training.final_rate": 0.1}),
        ("resgan", {"training": {"weight_decay": 0.1}}, {"training.weight_decay": 0.1}),
        ("strong", {"training": {"weight_decay": 0.1}}, {}),
    ],
)
def test_what_is_set_of_a_part_that_is_not_there_has_no_effect(tmp_path, preset, overrides, idle):
    def found(settings):
        return {name: value for values in without_effect(settings).values() for name, value in values.items()}

    settings = resolve(preset, overrides=overrides)
    assert found(settings) == idle
    file = tmp_path / "settings.toml"
    file.write_text(to_toml(settings))
    assert found(resolve(file=file)) == idle


def test_each_part_that_is_not_there_is_told_apart():
    overrides = {"loss": {"gradient_penalty": 1.0}, "simulated": {"seed": 3}, "training": {"final_rate": 0.1}}
    assert [why.split(" ")[0] for why in without_effect(resolve("unet", overrides=overrides))] == [
        "loss.adversarial",
        "simulated.share",
        "training.schedule",
    ]


def test_the_number_of_epochs_decides_only_where_the_learning_rate_depends_on_it():
    short, long = (resolve("adv", overrides={"training": {"epochs": n}}) for n in (3, 4))
    assert decisive(short) == decisive(long)
    cosine = {"schedule": "cosine"}
    short, long = (resolve("adv", overrides={"training": {"epochs": n, **cosine}}) for n in (3, 4))
    assert difference(decisive(short), decisive(long)) == "training.epochs = 3, now 4"


def test_a_patch_smaller_than_the_window_of_ssim_is_refused():
    small = {"patch": 8, "validation_stride": 8}
    with pytest.raises(SettingsError, match=r"training\.patch: a patch smaller than the window of SSIM; found 8"):
        resolve("unet", overrides={"loss": {"ssim": 1.0}, "training": small})
    resolve("unet", overrides={"training": small})


def test_a_patch_that_does_not_fit_into_the_grid_along_every_axis_is_refused():
    with pytest.raises(SettingsError, match=r"model.s grid; found 32, expected at most 24, the shortest"):
        resolve("resgan", overrides={"prepare": {"shape": [128, 160, 24]}})
