import csv
from pathlib import Path

import ablate_recipe
import pytest
import torch
from ablate_recipe import EPOCHS, VARIANTS, ablate, settings_of

from unscanned.datasets.pairs import select_pairs
from unscanned.errors import SettingsError
from unscanned.files import read_json
from unscanned.machine.precision import available
from unscanned.settings import Prepare
from unscanned.synthesis.model_file import load_model
from unscanned.training.prepare import prepare
from unscanned.training.run import check_settings

COMMON = Path(__file__).parents[2] / "docs" / "experiments" / "ablation.toml"
TINY = {
    "prepare": {"shape": [32, 32, 32]},
    "split": {"train": 2, "validation": 1, "test": 1},
    "training": {"batch": 2, "patch": 16, "validation_stride": 16, "device": "cpu", "threads": 1},
    "synthesis": {"stride": 16},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_can_be_trained(variant):
    settings = settings_of(variant, None, {"training": {"device": "cpu"}})
    if settings.training.precision not in available(torch.device("cpu")):
        pytest.skip(f"the processor has no {settings.training.precision}")
    check_settings(settings)


def test_every_variant_differs_from_every_other_where_the_loss_has_no_gradient_difference():
    told = {variant: str(settings_of(variant, COMMON, {})) for variant in VARIANTS}
    assert len(set(told.values())) == len(told)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*(further from the target|always right|next to no contrast|same output)")
def test_variants_get_as_many_steps_as_their_time_allows_and_a_second_call_makes_nothing_again(
    tiny_dataset, tmp_path, monkeypatch
):
    variants = ("today", "strong")
    ablate(tiny_dataset, tmp_path / "out", variants, seconds=2.0, common=TINY)
    with pytest.raises(SettingsError, match=r"another budget.*found 2 s, expected 3 s, or a new folder"):
        ablate(tiny_dataset, tmp_path / "out", variants, seconds=3.0, common=TINY)
    lengths = {name: read_json(tmp_path / "out" / f"{name}_seed-0" / "steps.json") for name in variants}
    for length in lengths.values():
        count = max(1, round(2.0 / length["seconds_a_step"] / EPOCHS))
        assert length["steps"] == EPOCHS * count
    with open(tmp_path / "out" / "scores.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["variant"] for row in rows} == {"today", "strong", "source", "regression"}
    with open(tmp_path / "out" / "ablation.csv", encoding="utf-8") as file:
        table = {(row["variant"], row["metric"]): row for row in csv.DictReader(file)}
    difference = float(table["strong", "psnr"]["mean"]) - float(table["today", "psnr"]["mean"])
    assert float(table["strong", "psnr"]["minus today"]) == pytest.approx(difference, abs=1e-3)
    page = ablate_recipe.markdown(tmp_path / "out" / "ablation.csv").splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in page[2:]] == ["source", "regression", "today", "strong"]
    models = sorted((tmp_path / "out").glob("*/run/model/*"))
    before = [path.read_bytes() for path in models]
    monkeypatch.setattr(ablate_recipe, "seconds_a_step", None)
    ablate(tiny_dataset, tmp_path / "out", variants, seconds=2.0, common=TINY)
    assert [path.read_bytes() for path in models] == before


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*(further from the target|always right|next to no contrast|same output)")
def test_with_one_left_out_each_subject_is_scored_by_a_model_that_never_saw_it(tiny_dataset, tmp_path):
    common = TINY | {"training": TINY["training"] | {"warmup_steps": 0}}
    record = ablate(tiny_dataset, tmp_path / "out", ["strong"], seconds=1.0, common=common, leave_one_out=True)
    subjects = {score.subject for score in record.scores}
    assert len(subjects) == 4
    for subject in subjects:
        model = load_model(tmp_path / "out" / "strong_seed-0" / f"run-without-{subject}" / "model")
        trained = {case["case"] for case in model.provenance["training_cases"]}
        assert trained == {f"sub-{other}" for other in subjects - {subject}}


@pytest.mark.usefixtures("coarse_heads")
def test_drawing_simulated_pairs_is_paid_for():
    common = {"prepare": {"shape": [32, 32, 32], "spacing_mm": 6.0}}
    assert ablate_recipe.seconds_a_pair(settings_of("strong", None, common)) == 0
    assert ablate_recipe.seconds_a_pair(settings_of("with-wide", None, common)) > 0


def test_the_table_of_the_results_is_that_of_its_file():
    docs = Path(__file__).parents[2] / "docs"
    for table in (docs / "experiments" / "scores").glob("recipe-*-table.csv"):
        assert ablate_recipe.markdown(table) in (docs / "results.md").read_text(encoding="utf-8")
    for table in (docs / "experiments" / "scores").glob("real-folds-*-table.csv"):
        assert ablate_recipe.markdown(table, "psnr_one_gain") in (docs / "results.md").read_text(encoding="utf-8")


def test_steps_without_the_adversary_are_paid_for_as_such():
    assert ablate_recipe.steps_that_fit(100, 0.1, 0.2, 0) == pytest.approx(500)
    assert ablate_recipe.steps_that_fit(100, 0.1, 0.2, 400) == pytest.approx(400 + 300)
    assert ablate_recipe.steps_that_fit(30, 0.1, 0.2, 400) == pytest.approx(300)


def test_a_step_costs_more_once_the_adversary_has_joined(tiny_dataset, tmp_path):
    pairs = select_pairs(tiny_dataset, source="PD", target="T2").pairs
    cases, _ = prepare(pairs, tmp_path / "prepared", Prepare(shape=(32, 32, 32)))
    early, late = ablate_recipe.seconds_a_step(settings_of("strong-gan", None, TINY), cases)
    assert 0 < early < late
    alone = ablate_recipe.seconds_a_step(settings_of("strong", None, TINY), cases)
    assert alone[0] == alone[1]
