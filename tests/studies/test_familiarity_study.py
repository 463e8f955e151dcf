"""The study of familiarity judges what it says, with a model that has no profile of its own."""

import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from familiarity import from_labels, main, spoiled

from unscanned.files import read_json, read_sealed, write_sealed
from unscanned.simulation.simulate import simulate
from unscanned.volumes.nifti import Volume


@pytest.mark.slow
def test_every_domain_is_judged_and_scored_where_the_target_is_there(
    ten_heads, ten_heads_run, tmp_path, monkeypatch, capsys
):
    grid = {"shape": (40, 48, 40), "spacing_mm": 5.0, "per_anatomy": 1}
    others = simulate(tmp_path / "others", subjects=2, seed=5, contrasts=("PD", "T2", "T1"), **grid)
    shutil.copytree(ten_heads_run, tmp_path / "run")
    facts = read_sealed(tmp_path / "run" / "model" / "model.json")
    del facts["familiarity"]
    write_sealed(tmp_path / "run" / "model" / "model.json", facts)
    given = [f"m:right:own={ten_heads}", f"m:right:others={others}", f"m:wrong:T1w@T1={others}"]
    words = [
        "--model",
        f"m={tmp_path / 'run'}",
        "--training",
        f"m={ten_heads}",
        "--spoil",
        "2",
        "--sizes",
        "8",
        "--given",
        *given,
    ]
    monkeypatch.setattr(sys, "argv", ["familiarity.py", *words, "--json", str(tmp_path / "scores.json")])
    main()
    printed = capsys.readouterr().out
    rows = read_json(tmp_path / "scores.json")["scans"]
    counts = {domain: sum(row["domain"] == domain for row in rows) for domain in ("own", "others", "T1w")}
    assert counts == {"own": 2, "others": 2, "T1w": 2}
    assert all((row["gain_db"] is None) == (row["domain"] not in ("own", "others")) for row in rows)
    assert [row["verdict"] for row in rows if row["domain"] == "noise alone"] == ["forced"] * 2
    assert "m, profiles of 8 scans: 4 right scans judged" in printed
    assert "| m | noise alone | no | 2 | 0 | 0 | 2 |" in printed


def test_spoiled_scans_are_what_their_names_say():
    rng = np.random.default_rng(0)
    scan = Volume(rng.uniform(0, 100, (48, 48, 60)).astype(np.float32), np.diag([2.0, 2.0, 2.0, 1.0]))
    found = dict(spoiled(scan, rng))
    assert found["lower half of a head"].shape == (48, 48, 30)
    slab = found["slab of 60 mm"]
    assert slab.shape[2] * 2.0 == 60
    assert np.array_equal(slab.array, scan.array[:, :, 15:45])
    assert slab.affine[2, 3] == 30
    assert np.allclose(found["voxels of 5 mm"].spacing_mm, 5)
    assert found["blurred by 7 mm"].array.std() < 0.1 * scan.array.std()


def test_ct_of_a_label_map_has_bone_brightest_and_air_below_all(tmp_path):
    labels = np.array([[[0, 515, 2, 507]]], np.int16)
    nib.save(nib.Nifti1Image(labels, np.eye(4)), tmp_path / "head_dseg.nii.gz")
    found = dict(from_labels(Path(tmp_path / "head_dseg.nii.gz")))
    assert found["label map"].array.ravel().tolist() == labels.ravel().tolist()
    assert found["CT"].array.ravel().tolist() == [-1000, 1200, 40, -100]
