"""The card of a model, as a notebook shows it."""

import dataclasses
import json

from notebook_tables import rows

from unscanned.synthesis.model_file import load_model


def test_the_card_says_what_the_run_says(tiny_run):
    model = load_model(tiny_run)
    card = dict(rows(model._repr_html_()))
    split = json.loads((tiny_run / "split.json").read_text())
    best = json.loads((tiny_run / "model" / "model.json").read_text())["provenance"]["stages"][0]["best"]
    assert card["makes"] == "T2 from PD"
    assert card["training subjects"] == "2: " + ", ".join(f"sub-{name}" for name in sorted(split["train"]))
    assert card["validation subjects"] == f"sub-{split['validation'][0]}"
    assert card["best epoch"] == f"epoch {best['epoch']}: PSNR {best['psnr']:.2f} dB, MAE {best['mae']:.3f} z-scores"
    assert card["sha256"] == model.sha256
    assert card["commit"] == (model.provenance["environment"]["commit"] or "not known")
    assert card["took"].startswith("6 steps, 12 patches, ")
    assert "small, residual" in card["network"]
    assert f"{sum(weight.numel() for weight in model.generators[0].parameters()):,} weights" in card["network"]
    assert card["loss"] == "adversarial 0.5, l1 1, gdl 1 (sum over voxels)"
    assert card["grid"] == "32 x 32 x 32 voxels of the scan's own size"
    assert card["synthesis"] == "patches at stride 16"
    assert "not for diagnosis" in card["use"]
    assert "licence" in card["use"]


def test_the_card_of_a_model_without_provenance_says_what_is_not_known(tiny_run):
    model = dataclasses.replace(load_model(tiny_run), provenance={}, path=None, sha256="")
    card = dict(rows(model._repr_html_()))
    for heading in ("took", "training subjects", "best epoch", "made", "commit", "sha256", "folder"):
        assert card[heading] == "not known", heading


def test_the_card_of_a_training_without_validation_says_that_the_last_epoch_was_kept(tiny_run):
    model = load_model(tiny_run)
    stage = {**model.provenance["stages"][0], "best": {"epoch": 2, "step": 6}}
    model = dataclasses.replace(model, provenance={**model.provenance, "validation_cases": [], "stages": [stage]})
    card = dict(rows(model._repr_html_()))
    assert card["best epoch"] == "epoch 2: the last, as there were no validation subjects"
    assert card["validation subjects"] == "none"


def test_the_card_of_a_training_that_ended_early_says_why(tiny_run):
    model = load_model(tiny_run)
    ended = {"best": model.provenance["stages"][0]["best"], "ended": "the generator has collapsed"}
    model = dataclasses.replace(model, provenance={**model.provenance, "stages": [ended]})
    assert dict(rows(model._repr_html_()))["took"] == "the generator has collapsed"


def test_a_model_says_what_it_is_in_a_line(tiny_run):
    model = load_model(tiny_run)
    assert repr(model) == f"Model(PD -> T2, small, cpu, {tiny_run / 'model'})"
    chain = dataclasses.replace(model, generators=[*model.generators, *model.generators], path=None)
    assert repr(chain) == "Model(PD -> T2, small x 2, cpu)"
