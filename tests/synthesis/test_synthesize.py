import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from torch import nn

from unscanned.datasets.layout import sidecar_path
from unscanned.errors import DatasetError, SettingsError, VolumeError
from unscanned.settings import Synthesis
from unscanned.synthesis.model_file import load_model
from unscanned.synthesis.sidecar import output_key, read_sidecar
from unscanned.synthesis.synthesize import list_inputs, output_path, synthesize
from unscanned.volumes.intensity import Contrast, Normalization, head_mask, head_scale
from unscanned.volumes.nifti import read_volume, write_volume


@pytest.fixture(scope="module")
def model(tiny_run):
    return load_model(tiny_run)


@pytest.fixture
def own(tiny_dataset, tmp_path):
    """A copy of the dataset that a test may change."""
    shutil.copytree(tiny_dataset, tmp_path / "dataset")
    return tmp_path / "dataset"


@pytest.fixture(scope="module")
def derivative(model, tiny_dataset, tmp_path_factory):
    """What becomes of the whole dataset."""
    out = tmp_path_factory.mktemp("derivative") / "synthetic"
    result = synthesize(model, list_inputs([tiny_dataset], source="PD", target="T2")[0], out)
    assert not result.failures
    return out


def contents(folder):
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in files}


@pytest.mark.parametrize(
    ("scan", "case", "expected"),
    [
        ("sub-01_PDw.nii.gz", None, "sub-01/anat/sub-01_desc-synthetic_T2w.nii.gz"),
        ("sub-01_ses-b_PDw.nii", None, "sub-01/ses-b/anat/sub-01_ses-b_desc-synthetic_T2w.nii.gz"),
        ("IXI012-HH-1211-PD.nii.gz", None, "sub-IXI012/anat/sub-IXI012_desc-synthetic_T2w.nii.gz"),
        ("my scan.v2.nii.gz", None, "sub-myscanv2/anat/sub-myscanv2_desc-synthetic_T2w.nii.gz"),
        ("sub-01.nii.gz", None, "sub-01/anat/sub-01_desc-synthetic_T2w.nii.gz"),
        ("sub-01-PD.nii.gz", None, "sub-01PD/anat/sub-01PD_desc-synthetic_T2w.nii.gz"),
        ("patient_7_T1.nii.gz", None, "sub-patient7T1/anat/sub-patient7T1_desc-synthetic_T2w.nii.gz"),
        ("Müller ß.nii", None, "sub-Mullerss/anat/sub-Mullerss_desc-synthetic_T2w.nii.gz"),
        ("磁共振_1.nii", None, "sub-1/anat/sub-1_desc-synthetic_T2w.nii.gz"),
        ("scan.nii", None, "sub-scan/anat/sub-scan_desc-synthetic_T2w.nii.gz"),
        (
            "sub-1_run-2_acq-b_PDw.nii.gz",
            None,
            "sub-1/anat/sub-1_acq-b_run-2_desc-synthetic_T2w.nii.gz",
        ),
        (
            "sub-1_space-MNI_desc-preproc_PDw.nii.gz",
            None,
            "sub-1/anat/sub-1_acq-spaceMNIdescpreproc_desc-synthetic_T2w.nii.gz",
        ),
        ("sub-Müller_PDw.nii.gz", None, "sub-Muller/anat/sub-Muller_desc-synthetic_T2w.nii.gz"),
        (
            "sub-Müller_PDw.nii.gz",
            "sub-Müller_ses-é",
            "sub-Muller/ses-e/anat/sub-Muller_ses-e_desc-synthetic_T2w.nii.gz",
        ),
        ("any.nii.gz", "sub-7_ses-1", "sub-7/ses-1/anat/sub-7_ses-1_desc-synthetic_T2w.nii.gz"),
    ],
)
def test_an_output_has_the_name_of_a_bids_derivative(scan, case, expected):
    assert output_path("out", Path("anywhere") / scan, "T2", case) == Path("out") / expected


def test_a_dataset_becomes_a_derivative_dataset_of_the_same_cases(derivative):
    expected = {"dataset_description.json"}
    for number in range(1, 5):
        stem = f"sub-{number:03d}/anat/sub-{number:03d}_desc-synthetic_T2w"
        expected |= {f"{stem}.nii.gz", f"{stem}.json"}
    assert set(contents(derivative)) == expected


def test_the_dataset_says_that_it_is_a_derivative_and_of_what(derivative):
    content = json.loads((derivative / "dataset_description.json").read_text())
    assert content["DatasetType"] == "derivative"
    assert content["GeneratedBy"][0]["Name"] == "unscanned"


@pytest.mark.parametrize(
    ("names", "target"),
    [
        (["sub-01_PDw.nii.gz", "sub-02_ses-b_PDw.nii", "IXI012-HH-1211-PD.nii.gz"], "T2"),
        (["new-scan_T1w.nii.gz"], "T2"),  # of the README
        (["scan.nii", "my scan.v2.nii.gz", "Müller_磁共振.nii.gz", "磁共振.nii.gz"], "T2"),
        (["sub-1_run-2_acq-b_PDw.nii.gz", "sub-1_space-MNI_desc-preproc_PDw.nii.gz", "sub-é_dir-AP_PDw.nii.gz"], "T2"),
        (["table.csv"], "T2"),
        (["sub-01_PDw.nii.gz", "sub-02_ses-b_PDw.nii"], "STIR"),
    ],
)
def test_the_validator_of_bids_finds_no_error_whatever_the_scan_is_called(
    model, tiny_dataset, tmp_path, names, target, bids_errors
):
    scan = read_volume(tiny_dataset / "sub-001" / "anat" / "sub-001_PDw.nii.gz")
    inputs = tmp_path / "in"
    for name in names:
        if name.endswith(".csv"):
            write_volume(inputs / "any name.nii", scan.array, scan.affine)
            (inputs / name).write_text("subject,session,PD\n7,1,any name.nii\n8,1,any name.nii\n")
        else:
            write_volume(inputs / name, scan.array, scan.affine)
    other = dataclasses.replace(model, settings=model.settings.change(data={"target": target}))
    scans = list_inputs([inputs / name for name in names], source="PD", target=target)[0]
    for _ in range(2):
        result = synthesize(other, scans, tmp_path / "out", force=True)
        assert not result.failures
    assert bids_errors(tmp_path / "out") == []


def test_the_validator_of_bids_accepts_the_derivative(derivative, bids_errors):
    assert bids_errors(derivative) == []


def test_a_sidecar_says_what_made_the_volume_from_what(derivative, model, tiny_dataset):
    volume = derivative / "sub-002" / "anat" / "sub-002_desc-synthetic_T2w.nii.gz"
    content = json.loads(sidecar_path(volume).read_text())
    scan = tiny_dataset / "sub-002" / "anat" / "sub-002_PDw.nii.gz"
    assert content["Synthetic"] is True
    assert content["IntendedUse"] == "research"
    assert "NOT FOR DIAGNOSIS" in content["Warning"]
    assert content["Contrast"] == "T2"
    source = content["SourceScans"][0]
    assert (source["Name"], source["Contrast"]) == (scan.name, "PD")
    assert source["Sha256"] == hashlib.sha256(scan.read_bytes()).hexdigest()
    assert content["Sha256"] == hashlib.sha256(volume.read_bytes()).hexdigest()
    assert content["Model"]["Sha256"] == model.sha256
    assert content["Model"]["Preset"] == "demo"
    assert content["GeneratedBy"][0]["Name"] == "unscanned"
    target = model.normalization.target
    intensity = content["Intensity"]
    assert (intensity["scale"], intensity["mean"], intensity["std"]) == (target.scale, target.mean, target.std)
    assert intensity["percentile"] == model.normalization.percentile
    assert {"torch", "numpy", "python", "unscanned", "device"} <= set(content["Environment"])
    assert content["Synthesis"]["stride"] == 16


@pytest.mark.parametrize(("name", "expected"), [("sub-ms19", True), ("sub-mslong03", False)])
def test_the_sidecar_says_whether_the_scan_shows_a_brain_without_skull(model, shared_data, tmp_path, name, expected):
    scan = next((shared_data / "ms-t1-t2-flair" / name).rglob("*_T2w.nii.gz"))
    coarse = read_volume(scan)
    write_volume(tmp_path / "sub-1_PDw.nii.gz", coarse.array[::4, ::4], coarse.affine @ np.diag([4.0, 4.0, 1.0, 1.0]))
    for number, said in enumerate((None, not expected, "false")):
        if said is not None:
            (tmp_path / "sub-1_PDw.json").write_text(json.dumps({"SkullStripped": said}))
        out = tmp_path / f"out{number}"
        (made,) = synthesize(model, [(tmp_path / "sub-1_PDw.nii.gz", None)], out, force=True, stride=16).written
        content = json.loads(sidecar_path(made).read_text())
        assert content["SkullStripped"] is (said if isinstance(said, bool) else expected)


def test_the_header_says_that_the_volume_is_synthetic(derivative):
    header = nib.load(derivative / "sub-001" / "anat" / "sub-001_desc-synthetic_T2w.nii.gz").header
    assert header["descrip"].item().startswith(b"SYNTHETIC T2 unscanned")


def test_what_is_there_already_from_the_same_input_and_model_is_skipped(model, own, tmp_path):
    scans = list_inputs([own], source="PD", target="T2")[0][:2]
    first = synthesize(model, scans, tmp_path / "out")
    before = contents(tmp_path / "out")
    again = synthesize(model, scans, tmp_path / "out")
    assert (len(first.written), len(again.written), len(again.skipped)) == (2, 0, 2)
    assert contents(tmp_path / "out") == before


def test_what_an_older_version_made_without_a_choice_that_came_later_keeps_its_key():
    scan, maker = SimpleNamespace(sha256="v"), SimpleNamespace(sha256="m")
    assert output_key(scan, maker, Synthesis()) == "b99e2591b74fb182"  # by the version before `mirror`
    assert output_key(scan, maker, Synthesis(mirror=True)) != "b99e2591b74fb182"


def test_a_mirrored_volume_is_another_one_and_its_sidecar_says_so(model, own, tmp_path):
    scans = list_inputs([own], source="PD", target="T2")[0][:1]
    (path,) = synthesize(model, scans, tmp_path / "out").written
    assert synthesize(model, scans, tmp_path / "out", mirror=True).written == [path]
    facts = read_sidecar(path).synthesis
    assert facts.mirror
    assert synthesize(model, scans, tmp_path / "out", mirror=True).skipped == [path]


def test_another_stride_input_or_a_damaged_output_is_made_again(model, own, tmp_path):
    scans = list_inputs([own], source="PD", target="T2")[0][:1]
    path = synthesize(model, scans, tmp_path / "out").written[0]
    right = path.read_bytes()
    assert synthesize(model, scans, tmp_path / "out", stride=8).written == [path]
    assert path.read_bytes() != right
    assert synthesize(model, scans, tmp_path / "out").written == [path]
    assert path.read_bytes() == right
    path.write_bytes(right[:-100])
    assert synthesize(model, scans, tmp_path / "out").written == [path]
    assert path.read_bytes() == right
    sidecar_path(path).unlink()
    assert synthesize(model, scans, tmp_path / "out").written == [path]
    scan = read_volume(scans[0][0])
    write_volume(scans[0][0], scan.array * 2 + 1, scan.affine)
    assert synthesize(model, scans, tmp_path / "out").written == [path]
    assert synthesize(model, scans, tmp_path / "out", overwrite=True).written == [path]


def test_one_bad_scan_among_three_does_not_stop_the_others(model, own, tmp_path):
    scans = list_inputs([own], source="PD", target="T2")[0][:3]
    scans[1][0].write_bytes(scans[1][0].read_bytes()[:5000])
    result = synthesize(model, scans, tmp_path / "out")
    assert [path.name[:7] for path in result.written] == ["sub-001", "sub-003"]
    assert list(result.failures) == [str(scans[1][0])]
    assert isinstance(result.failures[str(scans[1][0])], VolumeError)
    assert not list((tmp_path / "out").rglob("*sub-002*"))
    assert not list((tmp_path / "out").rglob(".partial*"))


def oblique(tmp_path, tiny_dataset):
    """A scan in LPS order, oblique, anisotropic and of odd size, as scanners give them."""
    scan = read_volume(tiny_dataset / "sub-001" / "anat" / "sub-001_PDw.nii.gz")
    turn = np.array([[0.99, 0.1, 0.1], [-0.11, 0.99, 0.05], [-0.1, -0.06, 0.99]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-6.0, -5.5, 7.1])
    affine[:3, 3] = [81.5, 110.25, -93.125]
    path = tmp_path / "scan.nii"
    write_volume(path, scan.array[:31, 2:39, :30], affine)
    return path


def test_the_output_lies_on_the_own_grid_of_an_oblique_anisotropic_scan(model, tiny_dataset, tmp_path):
    path = oblique(tmp_path, tiny_dataset)
    made = nib.load(synthesize(model, [(path, None)], tmp_path / "out").written[0])
    scan = nib.load(path)
    assert made.shape == scan.shape == (31, 37, 30)
    np.testing.assert_allclose(made.affine, scan.affine, atol=1e-5)
    assert nib.aff2axcodes(made.affine) == ("L", "P", "S")
    assert made.get_data_dtype() == np.float32
    # The head is where it was: bright inside it, dark in the corners.
    inside = np.asarray(scan.dataobj) > 0.3 * np.asarray(scan.dataobj).max()
    values = np.asarray(made.dataobj)
    assert np.abs(values[inside]).mean() > 2 * np.abs(values[:3, :3, :3]).mean()


class Source(nn.Module):
    """The identity, with a weight that says where it is."""

    def __init__(self):
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x[:, :1]


@st.composite
def affines(draw):
    """Any order and direction of axes, oblique, anisotropic, anywhere in the world."""
    signs = draw(st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3))
    spacings_mm = draw(st.tuples(*[st.floats(0.4, 5.0)] * 3))
    angles = draw(st.tuples(*[st.floats(-40, 40)] * 3))
    affine = np.eye(4)
    axes = np.eye(3)[:, draw(st.permutations([0, 1, 2]))] * signs * spacings_mm
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ axes
    affine[:3, 3] = draw(st.tuples(*[st.floats(-200, 200)] * 3))
    return affine


@settings(deadline=None, max_examples=60)
@given(
    affine=affines(),
    shape=st.tuples(*[st.integers(5, 16)] * 3),
    kind=st.sampled_from(["u1", "<i2", ">i2", "<i4", "<f4", ">f4", "<f8"]),
    ending=st.sampled_from([".nii", ".nii.gz"]),
)
def test_the_identity_gives_the_scan_back_on_its_own_grid(model, tmp_path_factory, affine, shape, kind, ending):
    folder = tmp_path_factory.mktemp("identity")
    values = np.zeros(shape)
    values[1:-1, 1:-1, 1:-1] = np.random.default_rng(0).uniform(20, 250, [n - 2 for n in shape])
    path = folder / f"scan{ending}"
    image = nib.Nifti1Image(values.astype(kind), affine, dtype=np.dtype(kind))
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    nib.save(image, path)
    scan = read_volume(path)
    # The target's scale is this scan's own, so that the way back is the inverse of the way in.
    scale = head_scale(scan.array, head_mask(scan.array), 99.9)
    constants = Normalization(99.9, Contrast(scale, 0.3, 0.2), Contrast(scale, 0.3, 0.2))
    identity = dataclasses.replace(model, generators=[Source()], normalization=constants, profile=None)
    (written,) = synthesize(identity, [(path, None)], folder / "out").written
    made = nib.load(written)
    assert made.shape == shape
    np.testing.assert_allclose(made.affine, nib.load(path).affine, atol=1e-5)
    assert np.abs(np.asarray(made.dataobj) - scan.array).max() < 1e-6 * scan.array.max()


def test_inputs_may_be_files_and_datasets_in_any_order(tiny_dataset):
    single = tiny_dataset / "sub-003" / "anat" / "sub-003_PDw.nii.gz"
    scans = list_inputs([single, tiny_dataset], source="PD", target="T2")[0]
    assert scans[0] == (single, None)
    assert [case for _, case in scans[1:]] == ["sub-001", "sub-002", "sub-003", "sub-004"]


def test_a_dataset_needs_no_target_scans(model, own):
    for path in own.rglob("*T2w*"):
        path.unlink()
    assert len(list_inputs([own], source="PD", target="T2")[0]) == 4


def test_a_folder_without_the_contrast_is_refused_by_its_name(tmp_path):
    with pytest.raises(DatasetError, match=str(tmp_path)):
        list_inputs([tmp_path], source="PD", target="T2")


def test_two_scans_that_would_be_written_under_one_name_are_refused_before_anything_is_written(model, own, tmp_path):
    scans = list_inputs([own], source="PD", target="T2")[0]
    pair = []
    for number, folder in enumerate(("a", "b")):
        (tmp_path / folder).mkdir()
        shutil.copy(scans[number][0], tmp_path / folder / "scan.nii.gz")
        pair.append((tmp_path / folder / "scan.nii.gz", None))
    with pytest.raises(SettingsError, match=r"scan_desc-synthetic_T2w\.nii\.gz"):
        synthesize(model, pair, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_same_scan_named_twice_is_made_once(model, tiny_dataset, tmp_path):
    single = tiny_dataset / "sub-003" / "anat" / "sub-003_PDw.nii.gz"
    result = synthesize(model, [(single, None), (single, None)], tmp_path / "out")
    assert (len(result.written), len(result.skipped)) == (1, 1)


@pytest.mark.parametrize("options", [{"stride": 0}, {"stride": 17}, {"batch": 0}, {"memory_mib": 0}])
def test_an_option_that_cannot_be_is_refused_before_anything_is_written(model, tiny_dataset, tmp_path, options):
    scans = list_inputs([tiny_dataset], source="PD", target="T2")[0]
    with pytest.raises(SettingsError):
        synthesize(model, scans, tmp_path / "out", **options)
    assert not list(tmp_path.rglob("*.nii.gz"))


def test_progress_moves_within_a_scan_and_ends_at_all(model, tiny_dataset, tmp_path):
    told = []
    scans = list_inputs([tiny_dataset], source="PD", target="T2")[0][:2]
    synthesize(model, scans, tmp_path / "out", batch=4, progress=lambda *now: told.append(now))
    assert [now[0] for now in told] == sorted(now[0] for now in told)
    assert told[-1] == (2000, 2000, "synthesized")
    assert len(told) > 4
    labels = [label for _, _, label in told if label.startswith("scan 1 of 2")]
    parts = ["reading", "to the model's grid", "patches", "back to the scan's grid", "writing"]
    assert list(dict.fromkeys(label.split(", ")[-1] for label in labels)) == parts
