"""`simulate --physics wide`: what is written, where labels lie, and what is refused before anything is."""

import json
from pathlib import Path

import numpy as np
import pytest

from unscanned.datasets.layout import take_inventory
from unscanned.errors import DatasetError, SettingsError
from unscanned.settings import Spread
from unscanned.simulation import simulate as module
from unscanned.simulation.relaxation import LESION
from unscanned.simulation.simulate import simulate
from unscanned.volumes.intensity import head_mask
from unscanned.volumes.nifti import read_volume

COARSE = {"shape": (40, 48, 40), "spacing_mm": 5.0}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, small_head):
    out = tmp_path_factory.mktemp("simulated") / "wide"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "draw_built_in", lambda name, rng: small_head)  # drawing one takes seconds
        yield simulate(
            out, subjects=2, per_anatomy=2, contrasts=("T1", "FLAIR"), physics="wide", clean=True, seed=3, **COARSE
        )


def test_images_labels_and_noise_free_images_lie_on_one_grid(dataset):
    anat, truth = (dataset / root / "sub-001" / "anat" for root in ("", "derivatives/truth"))
    image = read_volume(anat / "sub-001_T1w.nii.gz")
    labels = read_volume(truth / "sub-001_dseg.nii.gz")
    clean = read_volume(truth / "sub-001_desc-noisefree_FLAIR.nii.gz")
    noisy = read_volume(anat / "sub-001_FLAIR.nii.gz")
    for other in (labels, clean, noisy):
        np.testing.assert_array_equal(other.affine, image.affine)
        assert other.shape == image.shape == (40, 48, 40)
    assert image.orientation == "LPS"
    rows = [line.split("\t") for line in (dataset / "derivatives/truth/dseg.tsv").read_text().splitlines()]
    assert rows[0] == ["index", "name"]
    assert rows[-1] == [str(LESION), "white-matter lesion"]
    assert set(np.unique(labels.array)) <= {float(number) for number, _ in rows[1:]}
    inside = labels.array > 0
    assert np.corrcoef(clean.array[inside], noisy.array[inside])[0, 1] > 0.97
    white, air = (np.median(noisy.array[labels.array == number]) for number in (1, 0))
    assert white > 5 * air


def test_labels_are_not_taken_for_scans(dataset):
    inventory = take_inventory(dataset, "auto", source="T1", target="FLAIR")
    assert {scan.contrast for scan in inventory.scans} == {"t1", "flair"}
    assert len(inventory.scans) == 4
    assert inventory.oddities == []


def test_the_sidecar_tells_what_was_drawn(dataset):
    anat = dataset / "sub-002" / "anat"
    t1, flair = (json.loads((anat / f"sub-002_{name}.json").read_text()) for name in ("T1w", "FLAIR"))
    assert t1["MagneticFieldStrength"] == flair["MagneticFieldStrength"]
    assert t1["MagneticFieldStrength"] in (1.5, 3.0)
    assert (flair["RepetitionTime"], flair["EchoTime"]) == (9.0, 0.12)
    assert flair["InversionTime"] > 2
    assert 0.8 <= t1["SliceThickness"] <= 6
    assert t1["Simulation"]["Coverage"] in ("whole", "defaced", "brain")
    assert t1["Simulation"]["Tissues"]["white matter"]["t1_ms"] > 400


def test_the_same_call_again_changes_nothing_and_another_is_refused(dataset, small_head, monkeypatch):
    monkeypatch.setattr(module, "draw_built_in", lambda name, rng: small_head)
    path = dataset / "sub-001" / "anat" / "sub-001_T1w.nii.gz"
    before = path.read_bytes()
    options = {"subjects": 2, "per_anatomy": 2, "contrasts": ("T1", "FLAIR"), "seed": 3, **COARSE}
    for description in dataset.rglob("dataset_description.json"):  # as of a release before tilt_deg
        content = json.loads(description.read_text())
        del content["GeneratedBy"][0]["Parameters"]["spread"]["tilt_deg"]
        description.write_text(json.dumps(content))
    simulate(dataset, physics="wide", clean=True, **options)
    assert path.read_bytes() == before
    with pytest.raises(SettingsError, match="something else is there"):
        simulate(dataset, physics="wide", clean=True, target="T1", **options)
    with pytest.raises(SettingsError, match="something else is there"):
        simulate(dataset, physics="wide", clean=True, spread=Spread(brain=0.0), **options)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"physics": "wild"}, "no such physics"),
        ({"physics": "wide", "contrasts": ("DWI",)}, "cannot be simulated"),
        ({"physics": "wide", "contrasts": ("T1", "T2"), "target": "PD"}, "target is not among"),
        ({"physics": "wide", "target": "DWI"}, "cannot be simulated"),
        ({"physics": "wide", "noise": (0.1, 0.2)}, "spread.noise"),
        ({"physics": "wide", "shading": (0.1, 0.2)}, "spread.receive"),
        ({"physics": "wide", "deformation_mm": 5.0}, "spread.deformation_mm"),
        ({"contrasts": ("T1", "FLAIR")}, "FLAIR needs wide physics"),
        ({"target": "T2"}, "belongs to wide physics"),
        ({"spread": Spread()}, "belongs to wide physics"),
        ({"physics": "wide", "spread": {"brain": 1.2}}, r"spread\.brain: must be at most 1"),
        ({"physics": "wide", "spread": {"brains": 1.0}}, r"spread\.brains: unknown setting.*Did you mean brain"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(SettingsError, match=message):
        simulate(tmp_path / "out", subjects=1, **options)
    assert not (tmp_path / "out").exists()


def test_the_command_line_writes_a_wide_dataset_of_label_maps(shared_data, tmp_path):
    from unscanned.cli import main

    out = tmp_path / "out"
    words = ["simulate", "-o", str(out), "--labels", str(shared_data / "head-labels"), "--subjects", "1"]
    words += ["--physics", "wide", "--contrasts", "T1w", "T2w", "--target", "T2w", "--spacing-mm", "4"]
    words += ["--spread.defaced", "1", "--spread.brain", "0", "--spread.noise", "0.02", "0.03"]
    assert main(words) == 0
    description = json.loads((out / "dataset_description.json").read_text())
    drawn_from = description["GeneratedBy"][0]["Parameters"]["spread"]
    assert drawn_from == Spread(defaced=1.0, brain=0.0, noise=(0.02, 0.03)).model_dump(mode="json")
    facts = json.loads((out / "sub-001" / "anat" / "sub-001_T1w.json").read_text())
    assert facts["Simulation"]["Coverage"] == "defaced"
    assert (out / "sub-001" / "anat" / "sub-001_T2w.nii.gz").exists()
    assert (out / "derivatives" / "truth" / "sub-001" / "anat" / "sub-001_dseg.nii.gz").exists()
    assert not list(Path(out).rglob("*noisefree*"))


def test_wide_physics_writes_the_mean_over_patients_in_unit_scale_on_the_grid_of_the_scan(
    tmp_path, small_head, monkeypatch
):
    monkeypatch.setattr(module, "draw_built_in", lambda name, rng: small_head)
    options = {"subjects": 1, "contrasts": ("T1", "T2"), "physics": "wide", "clean": True, "seed": 3, **COARSE}
    simulate(tmp_path, patients=2, **options)
    noisy = read_volume(tmp_path / "sub-001" / "anat" / "sub-001_T2w.nii.gz")
    mean = read_volume(tmp_path / "derivatives/truth/sub-001/anat/sub-001_desc-posterior_T2w.nii.gz")
    np.testing.assert_array_equal(mean.affine, noisy.affine)
    inside = head_mask(noisy.array, noisy.affine)
    assert 0.6 < np.percentile(mean.array[inside], 99.9) < 1.1
    assert np.corrcoef(mean.array[inside], noisy.array[inside])[0, 1] > 0.8
    with pytest.raises(DatasetError, match="would not write"):
        simulate(tmp_path, **options)


def test_narrow_physics_writes_noise_free_images_too_and_the_same_scans(tmp_path):
    options = {"subjects": 1, "contrasts": ("PD", "T2"), "seed": 5, "shape": (24, 28, 24)}
    simulate(tmp_path / "plain", **options)
    simulate(tmp_path / "both", clean=True, **options)
    name = Path("sub-001") / "anat" / "sub-001_T2w.nii.gz"
    assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "both" / name).read_bytes()
    noisy = read_volume(tmp_path / "both" / name).array
    clean = read_volume(tmp_path / "both" / "derivatives/truth" / name.with_name("sub-001_desc-noisefree_T2w.nii.gz"))
    sigma = json.loads((tmp_path / "both" / name.with_name("sub-001_T2w.json")).read_text())["Simulation"]["NoiseSigma"]
    bright = clean.array > 10 * sigma
    assert (noisy - clean.array)[bright].std() == pytest.approx(sigma, rel=0.1)
    simulate(tmp_path / "plain", clean=True, **options)  # an earlier simulation gets them beside its scans
    assert list((tmp_path / "plain").rglob("*noisefree*.nii.gz"))
