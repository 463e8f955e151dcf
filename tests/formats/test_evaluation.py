import json
import math
import os
import shutil
from pathlib import Path

import pytest
from cohort import head_phantom, write_cohort, write_oriented

from unscanned.errors import DatasetError
from unscanned.evaluation.evaluate import evaluate
from unscanned.evaluation.tables import scores_csv, slices_csv
from unscanned.files import read_json, write_json
from unscanned.formats.evaluation import read_evaluation
from unscanned.report.page import write_report

STORED = Path(__file__).parent / "2026-11-26" / "evaluation"


@pytest.fixture
def changed(tmp_path):
    """Return a function that writes the stored evaluation with a change to it, and returns its folder."""

    def write(change):
        content = read_json(STORED / "evaluation.json")
        change(content)
        write_json(tmp_path / "evaluation.json", content)
        return tmp_path

    return write


def refusal(folder):
    with pytest.raises(DatasetError) as refused:
        read_evaluation(folder)
    assert refused.value.exit_code == 3
    assert str(folder / "evaluation.json") in str(refused.value)
    return str(refused.value)


def test_the_stored_evaluation_of_format_1_is_read_whole():
    record, content = read_evaluation(STORED), read_json(STORED / "evaluation.json")
    assert record.unscanned is None
    again = {key: value for key, value in record.to_json().items() if key != "unscanned"}
    assert [case.pop("regression") for case in again["cases"]] == [None] * len(
        content["cases"]
    )  # a key of later releases
    assert again == content


def test_the_stored_evaluation_makes_its_own_tables():
    record = read_evaluation(STORED)
    assert scores_csv(record.scores, record.failures) == (STORED / "scores.csv").read_text()
    assert slices_csv(record.slices) == (STORED / "slices.csv").read_text()


def test_the_stored_volumes_score_as_they_did(monkeypatch, tmp_path):
    monkeypatch.chdir(STORED.parents[1])
    split = read_json("2026-11-26/run/split.json")
    again = evaluate(
        "2026-11-26/dataset",
        {"small": "2026-11-26/synthetic"},
        tmp_path,
        subjects=split["test"],
        training=split["train"],
    )
    old = read_evaluation(STORED)
    for row, stored in zip(again.scores, old.scores, strict=True):
        assert (row.case, row.arm, row.region) == (stored.case, stored.arm, stored.region)
        assert {name: row.values[name] for name in stored.values} == pytest.approx(stored.values, rel=1e-5)
    known = [row for row in again.content.comparisons if row.metric in old.definitions]
    assert [dict(row) | {"difference": 0} for row in known] == [
        dict(row) | {"difference": 0} for row in old.comparisons
    ]


def test_the_stored_evaluation_makes_a_report_with_pictures(monkeypatch, tmp_path):
    monkeypatch.chdir(STORED.parents[1])
    page = write_report("2026-11-26/evaluation", tmp_path / "report.html").read_text(encoding="utf-8")
    assert "No pictures" not in page
    assert page.count('id="viewer-0-') > 1
    assert "0.513" in page


def test_an_evaluation_says_which_release_wrote_it_and_reads_back_as_it_was_made(tmp_path):
    raw, arms = write_cohort(tmp_path, ("01", "02"), {"good": 0.02})
    made = evaluate(raw, arms, tmp_path / "out")
    assert read_evaluation(tmp_path / "out") == made.content
    assert read_json(tmp_path / "out" / "evaluation.json")["unscanned"] == made.content.unscanned != ""


def test_an_infinite_score_is_null_in_the_file_and_none_when_read(tmp_path):
    raw, _ = write_cohort(tmp_path, ("01",), {})
    write_oriented(tmp_path / "arm" / "sub-01_desc-synthetic_T2w.nii.gz", head_phantom(0)[1])
    made = evaluate(raw, {"same": tmp_path / "arm"}, tmp_path / "out")
    assert [row.values["psnr"] for row in made.scores if row.arm == "same"] == [math.inf] * 2
    record = read_evaluation(tmp_path / "out")
    assert [row.values["psnr"] for row in record.scores if row.arm == "same"] == [None] * 2
    assert record.arms["same"]["head"]["psnr"].mean is None


def test_an_arm_whose_folder_has_a_name_that_is_no_text_is_scored_and_shown(cli, tmp_path):
    raw, arms = write_cohort(tmp_path, ("01",), {"good": 0.02})
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/h\xf6pital"))
    shutil.move(arms["good"], folder)
    assert cli("evaluate", raw, f"good={folder}", "-o", tmp_path / "out").returncode == 0
    assert read_evaluation(tmp_path / "out").folders == {"good": str(folder)}
    assert cli("report", tmp_path / "out", "-o", tmp_path / "report.html").returncode == 0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c.update(definitons={}), "definitons: unknown key; expected one of format, unscanned, created"),
        (lambda c: c.update(definitons={}), "Did you mean definitions?"),
        (lambda c: c["scores"][0].update(sesion="1"), "scores.sesion: unknown key; expected one of case, subject"),
        (lambda c: c["arms"]["small"]["head"]["mae"].update(sdd=1.0), "sdd: unknown key; expected one of mean, sd"),
        (
            lambda c: c["arms"]["small"]["head"]["mae"].update(n="1"),
            "mae.n: a value of the wrong kind; found '1'",
        ),
        (lambda c: c.pop("constants"), "constants: a key is missing; expected table"),
        (lambda c: c.update(percentile="99.9"), "percentile: a value of the wrong kind; found '99.9', expected number"),
        (lambda c: c["comparisons"][0].update(n=1.5), "comparisons.n: a value of the wrong kind; found 1.5"),
        (lambda c: c.update(resample=1), "resample: a value of the wrong kind; found 1, expected true or false"),
    ],
)
def test_a_key_or_value_that_cannot_be_is_refused_by_name(changed, change, told):
    assert told in refusal(changed(change))


def test_a_refusal_names_the_release_that_wrote_the_file(changed):
    told = refusal(changed(lambda content: content.update(unscanned="7.8.9", region={})))
    assert "region: unknown key" in told
    assert "Did you mean regions?" in told
    assert "unscanned 7.8.9 wrote the file" in told


def test_a_newer_format_is_refused_with_what_is_read_here_and_what_to_do(cli, changed):
    folder = changed(lambda content: content.update(format=2, unscanned="7.8.9", more="unknown"))
    told = refusal(folder)
    assert "another format of evaluation; found 2, written by unscanned 7.8.9, expected 1" in told
    assert "Use the release that made it, or make it again" in told
    done = cli("report", folder, "-o", folder / "report.html")
    assert (done.returncode, done.stderr.strip()) == (3, f"unscanned: {told}")


@pytest.mark.parametrize("text", [None, "{", "[]", "3", '{"format": 7}', '{"format": "1"}', "{}", "[" * 100_000])
def test_what_is_no_evaluation_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "evaluation.json").write_text(text)
    refusal(tmp_path)


def test_metrics_that_are_not_known_here_are_shown_by_their_names(changed, tmp_path):
    def rename(content):
        text = json.dumps(content).replace('"ssim"', '"sharpness"')
        content.clear()
        content.update(json.loads(text))

    page = write_report(changed(rename), tmp_path / "report.html").read_text(encoding="utf-8")
    assert '<th class="num">sharpness</th>' in page
    assert "0.663" in page
