import sys
from pathlib import Path

import fine_tuning
import pytest

from unscanned.files import read_json
from unscanned.formats.evaluation import read_evaluation
from unscanned.synthesis.shelf import SHIPPED
from unscanned.synthesis.sidecar import read_sidecar


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*held out here")  # the tiny model has seen two of the four
def test_each_patient_is_made_by_networks_that_have_not_seen_it(tiny_dataset, tiny_run, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    words = [out, tiny_run / "model", tiny_dataset, "--source", "PD", "--target", "T2", "--steps", 2]
    monkeypatch.setattr(sys, "argv", ["fine_tuning.py", *map(str, words)])
    fine_tuning.main()
    subjects = {"001", "002", "003", "004"}
    for patient in subjects:
        for arm in fine_tuning.ARMS:
            run = out / f"{arm}-without-{patient}"
            assert set(read_json(run / "split.json")["train"]) == subjects - {patient}
            facts = read_json(run / "model" / "model.json")["provenance"]
            assert ("started_from" in facts) == (arm != "from-scratch")
            [made] = out.joinpath(arm, f"sub-{patient}").rglob("*.nii.gz")
            assert read_sidecar(made).model.sha256 == fine_tuning.load_model(run / "model", "cpu").sha256
    record = read_evaluation(out / "evaluation")
    assert set(record.arms) == {"source", "regression", "as-it-is", *fine_tuning.ARMS}
    assert all(arm["head"]["psnr"].n == 4 for arm in record.arms.values())
    assert "| fine-tuned | psnr |" in capsys.readouterr().out


WITHOUT_GDL = Path(__file__).parents[2] / "docs" / "experiments" / "fine-tuning.toml"


def test_half_of_the_patches_are_simulated_where_label_maps_are_at_hand(tmp_path):
    common = {"training": {"device": "cpu"}, "simulated": {"share": 0.0, "labels": "head-labels"}}
    settings = fine_tuning.settings_of(fine_tuning.WITH_WIDE, SHIPPED / "t1w-t2w", tmp_path / "split.json", common)
    assert (settings.simulated.share, settings.simulated.labels) == (0.5, "head-labels")
    assert settings.training.start == str(SHIPPED / "t1w-t2w")
    assert settings.loss.gdl == 1
    without = fine_tuning.settings_of("fine-tuned", SHIPPED / "t1w-t2w", tmp_path / "split.json", common, WITHOUT_GDL)
    assert without.loss.gdl == 0
