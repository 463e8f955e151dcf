"""What a run is said to cost is what it takes."""

import json

import pytest

from unscanned.errors import DatasetError
from unscanned.experiment import arm_settings, estimate_costs
from unscanned.settings import to_toml
from unscanned.training import cost as cost_module
from unscanned.training.batches import PatchBatches
from unscanned.training.cost import estimate_cost
from unscanned.training.effort import synthesis_cost
from unscanned.training.prepare import Case, normalization
from unscanned.training.run import train


def test_patches_steps_and_disk_are_those_of_the_run(tiny_dataset, tiny_settings, tiny_run):
    cost = estimate_cost(tiny_dataset, tiny_settings, seconds=0)
    log = [json.loads(line) for line in (tiny_run / "log.jsonl").read_text().splitlines()]
    assert cost.steps == sum(row["event"] == "step" for row in log)
    assert cost.subjects == {"train": 2, "validation": 1, "test": 1}
    assert (cost.seconds, cost.memory_bytes) == (None, None)
    written = sum(path.stat().st_size for path in tiny_run.rglob("*") if path.suffix in (".npy", ".safetensors"))
    assert written / 2 < cost.disk_bytes < 2 * written


@pytest.mark.parametrize("min_head", [0.0, 0.1, 0.55])
def test_the_passes_are_counted_as_the_batches_count_them(tiny_dataset, tiny_settings, tiny_run, min_head):
    settings = tiny_settings.change(training={"min_head": min_head})
    (first, _) = json.loads((tiny_run / "split.json").read_text())["train"]
    case = Case(f"sub-{first}", first, tiny_run / "prepared" / f"sub-{first}")
    batches = PatchBatches([case], normalization([case]), settings.training)
    assert estimate_cost(tiny_dataset, settings, seconds=0).patches == 2 * len(batches.index)


def test_a_share_of_the_head_that_no_patch_has_is_refused(tiny_dataset, tiny_settings):
    settings = tiny_settings.change(training={"min_head": 1.0})
    with pytest.raises(DatasetError, match="no training patch has enough of the head"):
        estimate_cost(tiny_dataset, settings, seconds=0)


def test_the_time_is_that_of_the_run_within_a_factor(tiny_dataset, tiny_settings, tmp_path):
    settings = tiny_settings.change(training={"epochs": 1, "steps_per_epoch": 20})
    cost = estimate_cost(tiny_dataset, settings, seconds=3)
    trained = train(tiny_dataset, tmp_path / "run", settings)
    took = trained.stages[0]["seconds"]
    assert took / 5 < cost.step_seconds * cost.steps < 5 * took
    assert cost.memory_bytes > 50 * 2**20
    assert any("measured in" in line for line in cost.lines())


def test_a_mirrored_synthesis_costs_twice_as_much(tiny_settings):
    mirrored = tiny_settings.change(synthesis={"mirror": True})
    assert synthesis_cost(mirrored) == 2 * synthesis_cost(tiny_settings) > 0


def test_a_chain_counts_its_folds_and_what_another_arm_has_trained(tiny_dataset, tiny_settings, tmp_path):
    file = tmp_path / "tiny.toml"
    text = to_toml(tiny_settings.change(training={"min_head": 0.0})).replace('preset = "demo"\n', "")
    file.write_text(text.replace("[context]\nstages = 1", "[context]"), encoding="utf-8")
    settings = arm_settings(["resgan", "resgan-acm"], file)
    costs = estimate_costs(tiny_dataset, settings, seconds=0)
    alone = estimate_cost(tiny_dataset, settings["resgan-acm"], seconds=0)
    assert costs["resgan"].steps == 6
    assert alone.steps == 4 * 6  # two stages and two folds
    assert costs["resgan-acm"].steps == 3 * 6


def test_a_dataset_that_is_not_there_is_refused(tmp_path, tiny_settings):
    with pytest.raises(DatasetError, match="the dataset is not there"):
        estimate_cost(tmp_path / "nothing", tiny_settings, seconds=0)


def test_settings_of_an_adversary_without_weight_are_told_before_the_work(tiny_dataset, tiny_settings, tmp_path):
    settings = tiny_settings.change(loss={"adversarial": 0.0, "gradient_penalty": 10.0})
    words = r"^demo: loss\.adversarial = 0 .* has no effect: loss\.gradient_penalty = 10\.0$"
    with pytest.warns(UserWarning, match=words):
        estimate_cost(tiny_dataset, settings, seconds=0)
    with pytest.warns(UserWarning, match=words), pytest.raises(DatasetError, match="not there"):
        train(tmp_path / "nothing", tmp_path / "run", settings)


def test_a_step_that_memory_does_not_hold_is_told_as_the_reason(tiny_dataset, tiny_settings, monkeypatch):
    def full(*given):
        raise MemoryError

    monkeypatch.setattr(cost_module, "build_step", full)
    monkeypatch.setattr(cost_module, "_parameters", lambda settings: 1)
    cost = estimate_cost(tiny_dataset, tiny_settings, seconds=1)
    assert (cost.seconds, cost.memory_bytes) == (None, None)
    assert "too little memory for a step of 1 to" in cost.lines()[-1]
    assert estimate_cost(tiny_dataset, tiny_settings, seconds=0).measured == "time and memory were not measured"
