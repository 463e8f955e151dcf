import json
import os
import re
import shutil
import signal
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tool import run, start

from unscanned.cluster.workers import open_cluster
from unscanned.errors import Interrupted, SettingsError
from unscanned.evaluation.evaluate import evaluate
from unscanned.experiment import reproduce
from unscanned.settings import to_dict
from unscanned.training.log import read_log
from unscanned.training.run import train

ARMS = ("resgan", "resgan-acm")


@pytest.fixture(scope="module")
def overrides(tiny_settings):
    """The small networks and patches for every arm; what an arm is about stays its own."""
    content = to_dict(tiny_settings)
    tables = {name: content[name] for name in ("prepare", "split", "discriminator", "synthesis")}
    training = {**content["training"], "steps_per_epoch": 2, "min_head": 0.0}
    return {**tables, "generator": {"name": "small"}, "training": training, "context": {"stride": 16}}


@pytest.fixture(scope="module")
def whole(tiny_dataset, overrides, tmp_path_factory):
    """Two arms from the dataset to the report in one go."""
    out = tmp_path_factory.mktemp("reproduce") / "out"
    result = reproduce(tiny_dataset, out, arms=ARMS, overrides=overrides, command="unscanned reproduce")
    return out, result


def volumes(out):
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in (out / "synthetic").rglob("*.nii.gz")}


def scores(out):
    return (out / "evaluation" / "scores.csv").read_text()


def test_one_call_leads_from_the_dataset_to_models_volumes_scores_and_report(whole):
    out, result = whole
    split = json.loads((out / "split.json").read_text())
    assert not result.failures
    assert set(ARMS) <= set(result.evaluation.content.arms)
    name = f"sub-{split['test'][0]}/anat/sub-{split['test'][0]}_desc-synthetic_T2w.nii.gz"
    assert set(volumes(out)) == {f"synthetic/{arm}/{name}" for arm in ARMS}
    for arm in ARMS:
        assert (out / "arms" / arm / "model" / "model.safetensors").is_file()
        assert json.loads((out / "arms" / arm / "split.json").read_text()) == split
        assert arm in scores(out)
    assert result.report == out / "report.html"


def test_errors_are_counted_by_tissue_in_the_label_maps_of_the_dataset_or_in_those_that_are_named(
    whole, tiny_dataset, overrides, tmp_path
):
    out, result = whole
    assert "tissue: white matter" in result.evaluation.content.regions
    assert "<h3>By tissue</h3>" in result.report.read_text(encoding="utf-8")
    [test] = json.loads((out / "split.json").read_text())["test"]
    named = tmp_path / "labels" / f"sub-{test}_dseg.nii.gz"
    named.parent.mkdir()
    shutil.copy(next((tiny_dataset / "derivatives").rglob(named.name)), named)  # without the names of dseg.tsv
    shutil.copytree(out, tmp_path / "out")
    again = reproduce(tiny_dataset, tmp_path / "out", arms=ARMS, overrides=overrides, labels=named.parent)
    assert "tissue: 1" in again.evaluation.content.regions
    assert "tissue: white matter" not in again.evaluation.content.regions


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_folder_without_label_maps_is_refused_before_anything_is_trained(
    cli, tiny_dataset, settings_file, tmp_path, more
):
    words = ["--arms", "demo", "--settings", settings_file, "--labels", tmp_path, *more]
    done = cli("reproduce", tiny_dataset, "-o", tmp_path / "out", *words)
    assert done.returncode == 3
    assert "no label maps" in done.stderr
    assert not (tmp_path / "out").exists()


def test_settings_that_make_all_arms_one_training_are_refused(whole, tiny_dataset, overrides, tmp_path):
    out, _ = whole
    with pytest.raises(SettingsError, match=r"resgan and adv: two arms would be the same training.*settings\.toml"):
        reproduce(
            tiny_dataset, tmp_path / "out", arms=("resgan", "adv"), file=out / "arms" / "resgan" / "settings.toml"
        )
    assert not (tmp_path / "out").exists()


def test_arms_that_cannot_be_compared_are_refused_with_the_setting_that_differs(tiny_dataset, tmp_path):
    words = r"resgan: the arms differ .*; found prepare\.shape = \[96, 112, 96\], here \[224, 224, 128\], expected"
    with pytest.raises(SettingsError, match=words):
        reproduce(tiny_dataset, tmp_path / "out", arms=("demo", "resgan"))


def test_the_progress_of_an_experiment_only_grows_and_ends_with_the_whole(tiny_dataset, overrides, tmp_path):
    told = []
    reproduce(tiny_dataset, tmp_path / "out", arms=ARMS, overrides=overrides, progress=lambda *now: told.append(now))
    done = [now[0] for now in told]
    assert done == sorted(done)
    assert {now[1] for now in told} == {done[-1]}
    assert {re.match(r"(arm \d of 2|\w+)", label)[0] for _, _, label in told} == {
        "arm 1 of 2",
        "arm 2 of 2",
        "scores",
        "report",
    }


def test_the_report_asks_nothing_of_any_server(whole):
    page = (whole[0] / "report.html").read_text(encoding="utf-8")
    assert "resgan-acm" in page
    assert not re.search(r"""(src|href)\s*=\s*["']https?://""", page)


def test_the_record_says_what_was_run_with_what(whole):
    record = json.loads((whole[0] / "reproduce.json").read_text())
    assert record["command"] == "unscanned reproduce"
    assert set(record["arms"]) == set(ARMS)
    assert record["arms"]["resgan-acm"]["settings"]["context"]["stages"] == 2
    assert record["split"] == json.loads((whole[0] / "split.json").read_text())
    assert record["finished"] >= record["started"]


def test_the_chain_takes_the_arm_before_it_as_its_first_stage(whole):
    stage = whole[0] / "arms" / "resgan-acm" / "stage-1"
    assert not (stage / "log.jsonl").exists()
    assert len(list(stage.glob("fold-*"))) == 2


def test_the_arms_share_their_prepared_scans(whole):
    assert len(list((whole[0] / "prepared").glob("*/source.npy"))) == 3
    assert not list((whole[0] / "arms").rglob("source.npy"))


def test_called_again_it_trains_and_synthesizes_nothing_anew(whole, tiny_dataset, overrides, tmp_path):
    shutil.copytree(whole[0], tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")}
    before |= {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.nii.gz")}
    reproduce(tiny_dataset, tmp_path / "out", arms=ARMS, overrides=overrides)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert scores(tmp_path / "out") == scores(whole[0])


def test_it_stops_while_it_synthesizes_too_and_goes_on_after(whole, tiny_dataset, overrides, tmp_path):
    """A stop is asked for when the first synthetic volume is there."""
    out = tmp_path / "out"
    shutil.copytree(whole[0], out)
    for folder in ("synthetic", "evaluation"):
        shutil.rmtree(out / folder)
    (out / "report.html").unlink()
    with pytest.raises(Interrupted):
        reproduce(tiny_dataset, out, arms=ARMS, overrides=overrides, should_stop=lambda: bool(volumes(out)))
    assert len(volumes(out)) == 1
    assert not (out / "report.html").exists()
    reproduce(tiny_dataset, out, arms=ARMS, overrides=overrides)
    assert volumes(out) == volumes(whole[0])
    assert scores(out) == scores(whole[0])


@pytest.fixture(scope="module")
def crossed(tiny_dataset, overrides, tmp_path_factory):
    """One arm in four folds with two seeds, in one go."""
    out = tmp_path_factory.mktemp("crossed") / "out"
    return out, reproduce(tiny_dataset, out, arms=["resgan"], overrides=overrides, seeds=(0, 3), folds=4)


def test_folds_test_each_subject_once_with_a_model_that_never_saw_it(crossed):
    out, result = crossed
    content = result.evaluation.content
    assert not result.failures
    assert sorted(subject for fold in content.folds for subject in fold["test"]) == ["001", "002", "003", "004"]
    assert {entry.case for entry in content.cases} == {"sub-001", "sub-002", "sub-003", "sub-004"}
    for seed in (0, 3):
        for number, fold in enumerate(content.folds, 1):
            place = f"resgan/seed-{seed}/fold-{number}"
            model = json.loads((out / "arms" / place / "model" / "model.json").read_text())
            trained = {case["case"].removeprefix("sub-") for case in model["provenance"]["training_cases"]}
            assert trained == {*fold["train"]}
            assert not trained & {*fold["test"], *fold["validation"]}
            made = {path.name[4:7] for path in (out / "synthetic" / place).rglob("*.nii.gz")}
            assert made == {*fold["test"]}
    assert json.loads((out / "split.json").read_text()) == {"folds": content.folds}


def test_a_subjects_score_is_the_mean_over_seeds_and_their_spread_is_told_beside(crossed):
    content = crossed[1].evaluation.content
    assert list(content.arms) == ["source", "regression", "resgan", "resgan, seed 0", "resgan, seed 3"]
    each = {
        (row.arm, row.subject): row.values["psnr"]
        for row in content.scores
        if row.region == "head" and row.arm.startswith("resgan")
    }
    subjects = ["001", "002", "003", "004"]
    assert set(each) == {(f"resgan, seed {seed}", subject) for seed in (0, 3) for subject in subjects}
    means = [(each["resgan, seed 0", subject] + each["resgan, seed 3", subject]) / 2 for subject in subjects]
    summary = content.arms["resgan"]["head"]["psnr"]
    assert (summary.n, summary.of) == (4, 4)  # subjects, not trainings
    assert summary.mean == pytest.approx(statistics.mean(means))
    assert summary.sd == pytest.approx(statistics.stdev(means))
    assert {(row.arm, row.n) for row in content.comparisons} == {("resgan", 4), ("regression", 4)}
    by_seed = [content.arms[f"resgan, seed {seed}"]["head"]["psnr"].mean for seed in (0, 3)]
    spread = content.spread["resgan"]["head"]["psnr"]
    assert spread.sd == pytest.approx(statistics.stdev(by_seed))
    assert (spread.low, spread.high, spread.n) == (min(by_seed), max(by_seed), 2)


def test_the_regression_of_a_subject_is_fitted_on_the_training_subjects_of_its_fold(crossed, tiny_dataset, tmp_path):
    out, result = crossed
    fold = result.evaluation.content.folds[0]
    alone = evaluate(
        tiny_dataset,
        {"one": out / "synthetic" / "resgan" / "seed-0" / "fold-1"},
        tmp_path / "evaluation",
        subjects=fold["test"],
        training=fold["train"],
    )
    [case] = [entry for entry in result.evaluation.content.cases if entry.subject == fold["test"][0]]
    assert case.regression == alone.content.regression


def test_the_page_tells_of_seeds_and_folds(crossed):
    page = (crossed[0] / "report.html").read_text(encoding="utf-8")
    assert "1 arm against the acquired T2 of\n4 test cases in 4 folds" in page
    assert "Over seeds, inside the head" in page
    assert "resgan, seed 3" in page
    verdicts = page[page.index('id="verdict"') : page.index("</ul>", page.index('id="verdict"'))]
    assert verdicts.count("<li") == 1


def test_a_fold_is_the_training_that_train_makes_of_its_settings(crossed, tiny_dataset, tmp_path):
    out, _ = crossed
    run = train(tiny_dataset, tmp_path / "run", file=out / "arms" / "resgan" / "seed-3" / "fold-2" / "settings.toml")
    again = out / "arms" / "resgan" / "seed-3" / "fold-2" / "model" / "model.safetensors"
    assert (run.model / "model.safetensors").read_bytes() == again.read_bytes()


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({}, "other seeds or folds"),
        ({"seeds": (0, 3)}, "other seeds or folds"),
        ({"folds": 4}, "other seeds or folds"),
        ({"seeds": (0, 3), "folds": 3}, "something else is there already"),
    ],
)
def test_other_seeds_and_folds_do_not_share_a_folder(crossed, tiny_dataset, overrides, other, words):
    with pytest.raises(SettingsError, match=words):
        reproduce(tiny_dataset, crossed[0], arms=["resgan"], overrides=overrides, **other)


@pytest.mark.parametrize("content", ["[]", "[[1]]", '{"folds": [1]}', '{"train": []}', "3"])
def test_a_file_that_is_no_split_is_not_replaced(tiny_dataset, overrides, tmp_path, content):
    (tmp_path / "split.json").write_text(content)
    with pytest.raises(SettingsError, match="something else is there already"):
        reproduce(tiny_dataset, tmp_path, arms=["resgan"], overrides=overrides, folds=4)
    assert (tmp_path / "split.json").read_text() == content


def test_a_seed_can_be_added_later_and_the_others_are_not_trained_anew(crossed, tiny_dataset, overrides, tmp_path):
    out = shutil.copytree(crossed[0], tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}
    result = reproduce(tiny_dataset, out, arms=["resgan"], overrides=overrides, seeds=(0, 3, 4), folds=4)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert result.evaluation.content.spread["resgan"]["head"]["psnr"].n == 3


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--seeds", 1, 1], "each seed is to be named once"),
        (["--seeds", -1], "training.seed"),
        (["--folds", 0], "folds"),
        (["--folds", 5], "too few subjects for the folds"),
        (["--folds", 2, "--split.file", "split.json"], "so do folds"),
        (["--split.folds", 2, "--split.fold", 3], "split.fold"),
    ],
)
def test_seeds_and_folds_that_cannot_be_are_refused_before_anything_is_written(
    cli, tiny_dataset, settings_file, tmp_path, given, words
):
    done = cli("reproduce", tiny_dataset, "-o", tmp_path / "out", "--arms", "demo", "--settings", settings_file, *given)
    assert done.returncode in (2, 3)
    assert words in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_dry_run_tells_what_all_trainings_cost(cli, tiny_dataset, settings_file, tmp_path):
    given = ["--arms", "demo", "--settings", settings_file, "--seeds", 0, 1, "--folds", 4, "--dry-run"]
    done = cli("reproduce", tiny_dataset, "-o", tmp_path / "out", *given)
    assert done.returncode == 0, done.stderr
    assert "folds = 4" in done.stdout
    assert "# subjects  2 train, 1 validation, 1 test" in done.stdout
    assert "# all 8 trainings" in done.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arms", [(), ("adv", "adv"), ("adv", "demo"), ("adv", "avd")])
def test_arms_that_cannot_be_compared_are_refused_before_anything_is_written(tiny_dataset, tmp_path, arms):
    with pytest.raises(SettingsError):
        reproduce(tiny_dataset, tmp_path / "out", arms=arms)
    assert not (tmp_path / "out").exists()


def test_cases_that_are_left_out_by_their_names_are_told_and_recorded(cli, tiny_dataset, settings_file, tmp_path):
    own = shutil.copytree(tiny_dataset, tmp_path / "dataset")
    for name in ("sub-x_run-1_PDw", "sub-x_run-2_PDw", "sub-x_T2w", "sub-y_PDw"):
        shutil.copy(own / "sub-001" / "anat" / "sub-001_PDw.nii.gz", own / f"{name}.nii.gz")
    done = cli("reproduce", own, "-o", tmp_path / "out", "--arms", "demo", "--settings", settings_file)
    assert done.returncode == 4
    assert "sub-x: several PD files" in done.stderr
    assert "1 case has no T2 scan and is left out: sub-y" in done.stderr
    assert json.loads((tmp_path / "out" / "reproduce.json").read_text())["incomplete"] == {"sub-y": "no T2 scan"}
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.parametrize("given", [("--split.test", 0), ("--split.file", "split.json")])
def test_a_split_without_test_subjects_is_refused_before_anything_is_written(
    cli, tiny_dataset, settings_file, tmp_path, monkeypatch, given
):
    monkeypatch.chdir(tmp_path)
    Path("split.json").write_text('{"train": ["001", "002"], "validation": ["003"], "test": []}')
    done = cli("reproduce", tiny_dataset, "-o", "out", "--arms", "demo", "--settings", settings_file, *given)
    assert done.returncode == 2
    assert "split.test" in done.stderr
    assert not Path("out").exists()


def test_an_arm_that_cannot_be_built_is_refused_before_another_is_trained(cli, tiny_dataset, settings_file, tmp_path):
    file = tmp_path / "tiny.toml"
    file.write_text(re.sub(r"\[generator\][^\[]*", "", settings_file.read_text()))
    command = ["reproduce", tiny_dataset, "-o", tmp_path / "out", "--arms", "resgan", "unet", "--settings", file]
    done = cli(*command, "--loss.adversarial", 0, "--training.patch", 20)
    assert done.returncode == 2
    assert "found 20 with generator.name = unet, expected a multiple of 8" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_killed_process_goes_on_to_the_same_volumes_and_scores(whole, tiny_dataset, tiny_settings, tmp_path):
    out, given = tmp_path / "out", tmp_path / "settings.toml"
    given.write_text(
        "[prepare]\nshape = [32, 32, 32]\n[split]\ntrain = 2\nvalidation = 1\ntest = 1\n"
        '[generator]\nname = "small"\n[discriminator]\nname = "small"\n'
        "[training]\nepochs = 2\nsteps_per_epoch = 2\nbatch = 2\npatch = 16\nvalidation_stride = 16\n"
        f"learning_rate = {tiny_settings.training.learning_rate}\nseed = {tiny_settings.training.seed}\n"
        "[context]\nstride = 16\n[synthesis]\nstride = 16\n"
    )
    command = ["reproduce", tiny_dataset, "-o", out, "--arms", *ARMS, "--settings", given, "--training.device", "cpu"]
    log = out / "arms" / "resgan-acm" / "stage-1" / "fold-2" / "log.jsonl"
    with start(*command) as process:
        while not read_log(log):
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.kill()
    assert not (out / "report.html").exists()
    done = run(*command, "--json", tmp_path / "scores.json")
    assert done.returncode == 0, done.stderr
    assert str(out / "report.html") in done.stdout
    assert volumes(out) == volumes(whole[0])
    assert scores(out) == scores(whole[0])
    assert set(ARMS) <= set(json.loads((tmp_path / "scores.json").read_text())["arms"])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_on_a_cluster_a_lost_workers_training_goes_on_and_the_result_is_that_of_one_process(
    whole, tiny_dataset, overrides, tmp_path
):
    pytest.importorskip("distributed")
    out = tmp_path / "out"
    with open_cluster("local:2", device="cpu", threads=1) as cluster, ThreadPoolExecutor(1) as pool:
        pids = cluster.client.run(os.getpid).values()
        running = pool.submit(reproduce, tiny_dataset, out, arms=ARMS, overrides=overrides, cluster=cluster)
        while not ([*out.glob("arms/**/checkpoints/*")] or running.done()):
            time.sleep(0.01)
        # One is idle, as the chain waits for the arm that the other trains.
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        result = running.result()
    assert not result.failures
    first, chain = (out / "arms" / arm / "model" / "model.json" for arm in ARMS)
    assert first.stat().st_mtime < chain.stat().st_mtime  # which waited for it
    assert volumes(out) == volumes(whole[0])
    assert scores(out) == scores(whole[0])


def is_midway(run):
    return not (run / "model").exists() and any(run.glob("**/checkpoints/*.safetensors"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_folds_and_seeds_on_a_cluster_are_those_of_one_process_though_a_worker_is_killed(
    tiny_dataset, overrides, tmp_path
):
    """A worker is killed by hand in the middle of a training, beside another one; chains wait for their fold."""
    pytest.importorskip("distributed")
    asked = {"arms": ARMS, "overrides": overrides, "folds": 4, "seeds": [1]}
    reproduce(tiny_dataset, tmp_path / "one", **asked)
    out, told = tmp_path / "two", []
    with open_cluster("local:2", device="cpu", threads=1) as cluster, ThreadPoolExecutor(1) as pool:
        running = pool.submit(
            reproduce, tiny_dataset, out, **asked, cluster=cluster, progress=lambda *now: told.append(now)
        )
        while not (midway := [run for run in out.glob("arms/*/*/*") if is_midway(run)]):
            assert not running.done(), running.result()
            time.sleep(0.01)
        os.kill(int(re.search(r"\d+", (midway[0] / ".lock").read_text())[0]), signal.SIGKILL)
        result = running.result()
    assert not result.failures
    assert len([*out.glob("arms/*/*/*/model/model.safetensors")]) == 8
    for model in out.glob("arms/*/*/*/model/model.safetensors"):
        assert model.read_bytes() == (tmp_path / "one" / model.relative_to(out)).read_bytes()
    for chain in out.glob("arms/resgan-acm/*/*/model/model.json"):
        first = out / "arms" / "resgan" / Path(*chain.parts[-4:])
        assert first.stat().st_mtime < chain.stat().st_mtime
        assert not (chain.parents[1] / "stage-1" / "log.jsonl").exists()
    assert volumes(out) == volumes(tmp_path / "one")
    assert scores(out) == scores(tmp_path / "one")
    done = [now[0] for now in told]
    assert done == sorted(done)
    assert any("of 8 done" in label for _, _, label in told)
