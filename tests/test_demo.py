import json
import re
import statistics

import pytest
from tool import start

from unscanned.datasets.pairs import find_pairs
from unscanned.datasets.split import split_subjects
from unscanned.demo import demo
from unscanned.errors import Interrupted
from unscanned.formats.evaluation import read_evaluation


@pytest.mark.parametrize("subjects", [0, 6])
def test_too_few_subjects_are_refused_before_any_is_simulated(cli, tmp_path, subjects):
    done = cli("demo", "-o", tmp_path / "out", "--subjects", subjects)
    assert done.returncode == 2
    assert "at least 7: 5 train, 1 validation, 1 test" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_demo_stops_in_its_simulation_too_and_says_how_far_it_is(tmp_path):
    told = []
    with pytest.raises(Interrupted, match="simulation, sub-002: 1 of 7"):
        demo(
            tmp_path,
            subjects=7,
            progress=lambda *now: told.append(now),
            should_stop=(tmp_path / "dataset" / "sub-001" / "anat" / "sub-001_PDw.nii.gz").exists,
        )
    (done, total, label) = told[-1]
    assert label == "simulation, sub-001"
    assert done < 0.1 * total


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_whole_demo_beats_the_regression_by_a_decibel_and_shows_what_it_promises(tmp_path):
    # One test, since it takes minutes of a core: tests apart may each run it, on workers side by side.
    with start("demo", "-o", tmp_path / "out", "--seed", 1) as process:
        said, complaints = process.communicate(timeout=1100)
    out = tmp_path / "out"
    assert process.returncode == 0, complaints

    found = read_evaluation(out / "evaluation")
    assert list(found.arms) == ["source", "regression", "noise-free", "tissues", "strong"]
    assert not found.failures
    psnr = {(row.subject, row.arm): row.values["psnr"] for row in found.scores if row.region == "head"}
    tested = {subject for subject, _ in psnr}
    assert len(tested) == 2
    gains = {subject: psnr[subject, "strong"] - psnr[subject, "regression"] for subject in tested}
    assert statistics.mean(gains.values()) >= 1, gains

    # The seed draws who is tested.
    pairs = find_pairs(out / "dataset")
    first, second = (split_subjects(pairs, train=5, validation=1, test=2, seed=seed) for seed in (0, 1))
    assert json.loads((out / "split.json").read_text()) == second != first
    assert tested == {*second["test"]}

    # The terminal and the report say what noise and tissues allow, and show the errors by tissue.
    assert re.search(r"^strong: PSNR \d+\.\d dB below what noise allows$", said, re.MULTILINE)
    assert re.search(r"^strong: PSNR \d+\.\d dB below what the literature's tissue values allow$", said, re.MULTILINE)
    assert "cerebrospinal fluid" in said
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<b>strong</b> is" in page
    assert "dB below what noise allows and" in page
    assert "<h3>By tissue</h3>" in page
    assert str(out / "report.html") in said
