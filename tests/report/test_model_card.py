"""The card of a model: made from its files and evaluations, shown, and refused where it is another model's."""

import json
import shutil

import pytest

from unscanned.errors import CheckpointError, DatasetError, SettingsError
from unscanned.evaluation.evaluate import evaluate
from unscanned.files import read_json, write_json
from unscanned.formats.card import CardRecord
from unscanned.formats.evaluation import read_evaluation
from unscanned.report.model_card import write_card
from unscanned.synthesis.model_file import load_model
from unscanned.synthesis.shelf import find_model, shelve
from unscanned.synthesis.synthesize import list_inputs, synthesize

ABOUT = {
    "purpose": "T2 from PD of simulated heads, for a test.",
    "not_for": ["diagnosis", "anything but these heads"],
    "licence": "Apache-2.0",
    "data": [{"name": "simulated heads", "licence": "Apache-2.0", "scans": 4, "note": "built by the package"}],
    "command": "unscanned train heads -o run",
    "failures": [{"what": "It draws no lesion.", "picture": "lesion.png"}],
}


@pytest.fixture(scope="module")
def evaluation(tiny_run, tiny_dataset, tmp_path_factory):
    """The model's own volumes of all four subjects, scored."""
    root = tmp_path_factory.mktemp("card")
    scans, _ = list_inputs([tiny_dataset], source="PD", target="T2")
    synthesize(tiny_run, scans, root / "synthetic")
    evaluate(tiny_dataset, {"model": root / "synthetic"}, root / "evaluation")
    return root / "evaluation"


@pytest.fixture
def own(shelf, tmp_path):
    folder = shutil.copytree(shelf, tmp_path / "models")
    (folder / "pd-t2" / "lesion.png").write_bytes(b"\x89PNG")
    return folder


def test_a_card_has_the_words_of_its_author_and_the_scores_of_the_evaluations(own, evaluation, cli, monkeypatch):
    path = write_card(own / "pd-t2", ABOUT, {"simulated, seen in training": evaluation})
    card = CardRecord.load(read_json(path), where=path, error=CheckpointError)
    assert (card.purpose, card.licence, card.command) == (ABOUT["purpose"], ABOUT["licence"], ABOUT["command"])
    assert card.model_sha256 == load_model(own / "pd-t2").sha256
    [psnr] = [score for score in card.scores if score.metric == "psnr"]
    record = read_evaluation(evaluation)
    assert psnr.mean == record.arms["model"]["head"]["psnr"].mean
    assert (psnr.domain, psnr.unit, psnr.n) == ("simulated, seen in training", "dB", 4)
    rows = {row.against: row for row in record.comparisons if (row.region, row.metric) == ("head", "psnr")}
    assert {gain.against: (gain.difference, gain.low, gain.high) for gain in psnr.gains} == {
        name: (row.difference, row.low, row.high) for name, row in rows.items() if row.arm == "model"
    }
    assert "source" in {gain.against for gain in psnr.gains}
    shelve(own, "pd-t2")
    assert {*find_model("pd-t2", own).entry.files} >= {"card.json", "lesion.png"}
    shown = cli("models", "pd-t2", "--models-in", own).stdout
    for words in (
        ABOUT["purpose"],
        "Apache-2.0",
        "4 scans",
        "seen in training: psnr",
        "minus source",
        "draws no lesion",
    ):
        assert words in shown, words
    monkeypatch.setenv("COLUMNS", "200")
    assert f"PSNR {psnr.mean:.1f} dB, simulated, seen in training" in cli("models", "--models-in", own).stdout


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"purpose": 3}, "about: purpose: a value of the wrong kind"),
        ({"licence": None}, "about: licence: a value of the wrong kind"),
        ({"data": []}, "about: data"),
        ({"colour": "blue"}, "about: colour: unknown key"),
    ],
)
def test_words_that_are_missing_or_unknown_are_refused(own, change, words):
    with pytest.raises(SettingsError, match=words):
        write_card(own / "pd-t2", ABOUT | change, {})
    assert not (own / "pd-t2" / "card.json").exists()


def test_a_picture_that_is_not_there_is_refused(own):
    (own / "pd-t2" / "lesion.png").unlink()
    with pytest.raises(CheckpointError, match="the picture of a failure is missing"):
        write_card(own / "pd-t2", ABOUT, {})


def test_an_evaluation_of_other_contrasts_or_of_several_arms_is_refused(own, evaluation, tmp_path):
    for name, change, words in (
        ("contrasts", {"source": "T1"}, "an evaluation of other contrasts; found T1 -> T2, expected PD -> T2"),
        ("arms", {"folders": {"a": "x", "b": "y"}}, "an evaluation of several arms; found a, b"),
    ):
        other = shutil.copytree(evaluation, tmp_path / name)
        write_json(other / "evaluation.json", read_json(other / "evaluation.json") | change)
        with pytest.raises(DatasetError, match=words):
            write_card(own / "pd-t2", ABOUT, {"d": other})


def test_a_card_of_another_model_is_refused(own):
    write_card(own / "pd-t2", ABOUT, {})
    path = own / "pd-t2" / "card.json"
    write_json(path, read_json(path) | {"model_sha256": "0" * 64})
    shelve(own, "pd-t2")
    with pytest.raises(CheckpointError, match="the card is another model's"):
        _ = find_model("pd-t2", own).card


def test_a_card_that_cannot_be_read_is_refused_by_its_key(own, cli):
    write_card(own / "pd-t2", ABOUT, {})
    path = own / "pd-t2" / "card.json"
    path.write_text(json.dumps(read_json(path) | {"colour": "blue"}))
    shelve(own, "pd-t2")
    done = cli("models", "pd-t2", "--models-in", own)
    assert done.returncode == 5
    assert "colour: unknown key" in done.stderr
