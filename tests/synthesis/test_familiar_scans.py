"""What a scan is like to a model: measured with every generator, kept by training, judged by synthesize."""

import json

import numpy as np
import pytest
import torch

from unscanned.cli import main
from unscanned.contrast.familiarity import FEWEST
from unscanned.files import read_sealed, write_sealed
from unscanned.models.generators import GENERATORS, build
from unscanned.models.hidden import hidden
from unscanned.settings import resolve
from unscanned.synthesis.familiarity import check_familiarity, measure_prepared, measure_scan, some, with_familiarity
from unscanned.synthesis.model import Model
from unscanned.synthesis.model_file import load_model, save_model
from unscanned.synthesis.pack import pack
from unscanned.synthesis.sidecar import read_sidecar
from unscanned.synthesis.verify import verify
from unscanned.training.prepare import Case
from unscanned.volumes.grid import Frame
from unscanned.volumes.intensity import Contrast, Normalization
from unscanned.volumes.nifti import read_volume, write_volume

CONSTANTS = Normalization(99.9, Contrast(900.0, 0.2, 0.3), Contrast(800.0, 0.2, 0.3))
SMALL = {
    "nie": {"filters": [4, 4, 4, 6, 6, 4, 4, 4], "kernels": [3] * 9},
    "small": {},
    "unet": {},
    "segresnet": {"filters": 4},
}


def scan_of(heads, number):
    return heads / f"sub-{number:03}" / "anat" / f"sub-{number:03}_PDw.nii.gz"


@pytest.fixture(scope="module")
def unseen(ten_heads_run, ten_heads):
    """The scan of the subject that the training left out."""
    [subject] = json.loads((ten_heads_run / "split.json").read_text())["test"]
    return ten_heads / f"sub-{subject}" / "anat" / f"sub-{subject}_PDw.nii.gz"


def noise_like(scan, path):
    """Noise on the grid of a scan."""
    volume = read_volume(scan)
    noise = 500 * np.abs(np.random.default_rng(0).normal(size=volume.shape))
    write_volume(path, noise.astype(np.float32), volume.affine)
    return path


def sidecar(out):
    [path] = out.rglob("*_T2w.nii.gz")
    return read_sidecar(path)


@pytest.mark.parametrize("name", list(GENERATORS))
def test_every_generator_has_features_that_depend_on_the_scan_alone(ten_heads, name):
    torch.manual_seed(0)
    generator = build(name, residual=True, output="tanh", options=SMALL[name]).train()
    tables = {"generator": {"name": name, "options": SMALL[name]}, "prepare": {"shape": [40, 48, 40]}}
    model = Model([generator], resolve("demo", overrides=tables), CONSTANTS)
    first, second = (read_volume(scan_of(ten_heads, number)) for number in (1, 2))
    seen = measure_scan(model, first)
    assert seen == measure_scan(model, first)
    assert seen.features != measure_scan(model, second).features
    assert all(np.isfinite(layer).all() and len(layer) % 2 == 0 for layer in seen.features)
    assert len(seen.features) == 2
    assert generator.training
    assert seen.edges_mm == (5.0, 5.0, 5.0)


def test_hidden_gives_the_inputs_of_the_widest_and_the_last_convolution():
    torch.manual_seed(0)
    x = torch.randn(1, 1, 16, 16, 16)
    generator = build("small").eval()
    generator.convolution = "spectral"
    widest, last = hidden(generator, x)
    assert generator.convolution == "spectral"
    assert (widest.shape[1], last.shape[1]) == (16, 16)
    convolutions = generator.layers[0]
    with torch.inference_mode():
        torch.testing.assert_close(convolutions[-1](last), build_plain(generator)(x))
    assert torch.equal(widest, hidden(generator, x)[0])
    assert [each.shape[1] for each in hidden(torch.nn.Conv3d(2, 1, 3), torch.zeros(1, 2, 8, 8, 8))] == [2]
    assert hidden(torch.nn.Conv3d(1, 1, 3), x) == []


def build_plain(generator):
    plain = build("small").eval()
    plain.load_state_dict(generator.state_dict())
    plain.convolution = "plain"
    return plain


def test_features_are_the_moments_of_the_channels_over_head_voxels(ten_heads):
    """With a patch that covers the whole grid, they are those of the layer itself."""
    torch.manual_seed(0)
    model = Model([build("small")], resolve("demo"), CONSTANTS)
    rng = np.random.default_rng(0)
    unit, head = rng.uniform(size=(32, 32, 32)).astype(np.float32), np.zeros((32, 32, 32), bool)
    head[5:20, 3:25, 8:30] = True
    seen = measure_prepared(model, unit, head, np.diag([2.0, 3.0, 4.0, 1.0]))
    x = torch.from_numpy(CONSTANTS.source.standardize(unit))[None, None]
    for layer, features in zip(hidden(model.generators[0], x), seen.features, strict=True):
        inside = layer[0].numpy()[:, head].astype(float)
        np.testing.assert_allclose(features, [*inside.mean(1), *inside.std(1)], rtol=1e-4, atol=1e-6)
    assert seen.edges_mm == (2.0, 3.0, 4.0)
    assert seen.extent_mm == (30.0, 66.0, 88.0)


def test_detail_is_half_where_all_is_smooth_and_one_for_noise():
    model = Model([build("small")], resolve("demo"), CONSTANTS)
    head = np.ones((32, 32, 32), bool)
    ramp = np.broadcast_to(np.linspace(0, 1, 32, dtype=np.float32)[:, None, None], head.shape)
    noise = np.random.default_rng(0).normal(size=head.shape).astype(np.float32)
    assert measure_prepared(model, ramp, head, np.eye(4)).detail == pytest.approx((0.5, 0, 0), abs=1e-4)
    assert measure_prepared(model, noise, head, np.eye(4)).detail == pytest.approx((1, 1, 1), abs=0.02)


def test_a_profile_takes_all_scans_or_some_at_equal_distances():
    assert some([1, 2, 3]) == [1, 2, 3]
    chosen = some(list(range(100)))
    assert len(set(chosen)) == 40
    assert (chosen[0], chosen[-1]) == (0, 99)


def test_training_keeps_what_the_scans_were_like(ten_heads_run, ten_heads):
    model = load_model(ten_heads_run)
    profile = model.familiarity
    assert profile.scans == 8
    assert list(profile.groups) == ["detail", "extent", "layer 1", "layer 2"]
    subjects = json.loads((ten_heads_run / "split.json").read_text())["train"]
    scans = [read_volume(ten_heads / f"sub-{s}" / "anat" / f"sub-{s}_PDw.nii.gz") for s in subjects]
    assert with_familiarity(model, scans).familiarity == profile
    case = Case(f"sub-{subjects[0]}", subjects[0], ten_heads_run / "prepared" / f"sub-{subjects[0]}")
    affine = Frame.from_json(case.facts.frame).working_affine
    assert measure_prepared(model, case.source, case.head, affine) == measure_scan(model, scans[0])
    assert with_familiarity(model, scans[: FEWEST - 1]).familiarity is None


def test_a_packed_model_keeps_the_profile_or_gets_one(ten_heads_run, ten_heads, tmp_path):
    model = load_model(ten_heads_run)
    scan = read_volume(scan_of(ten_heads, 1))
    assert load_model(pack(model, tmp_path / "packed", [scan]).folder).familiarity == model.familiarity
    old = without_profile(ten_heads_run, tmp_path / "old")
    assert old.familiarity is None
    given = with_familiarity(old, [read_volume(scan_of(ten_heads, number)) for number in range(1, 9)])
    loaded = load_model(pack(given, tmp_path / "given", [scan]).folder)
    assert loaded.familiarity == given.familiarity is not None
    assert loaded.sha256 != old.sha256


def without_profile(run, folder):
    """The model as a release that knew no profile wrote it."""
    save_model(load_model(run), folder)
    facts = read_sealed(folder / "model.json")
    del facts["familiarity"]
    write_sealed(folder / "model.json", facts)
    return load_model(folder)


def test_a_scan_like_the_training_scans_is_made_and_called_familiar(ten_heads_run, unseen, tmp_path, capsys):
    assert main(["synthesize", str(ten_heads_run), str(unseen), "-o", str(tmp_path / "out"), "--device", "cpu"]) == 0
    found = sidecar(tmp_path / "out").input_familiarity
    assert found.verdict == "familiar", found.reason
    assert found.score < found.warns_above < found.refuses_above
    assert "unlike" not in capsys.readouterr().err


def test_noise_is_refused_with_the_reason_and_force_goes_on_and_marks_it(ten_heads_run, unseen, tmp_path, capsys):
    scan, out = noise_like(unseen, tmp_path / "scan.nii.gz"), tmp_path / "out"
    words = ["synthesize", str(ten_heads_run), str(scan), "-o", str(out), "--device", "cpu"]
    assert main(words) == 3
    message = " ".join(capsys.readouterr().err.split())
    assert "scan.nii.gz: this scan is unlike those that the model was trained on; found score" in message
    assert "noisier or sharper" in message
    assert "--force goes on" in message
    assert not list(out.rglob("*.nii.gz"))
    assert main([*words, "--force"]) == 0
    found = sidecar(out).input_familiarity
    assert found.verdict == "forced"
    assert found.score > found.refuses_above
    [made] = out.rglob("*.nii.gz")
    assert verify(made, device="cpu").verdict == "identical"
    # What was forced is not taken for done, and not made again by force.
    before = made.read_bytes()
    assert main(words) == 3
    assert main([*words, "--force"]) == 0
    assert "1 were there already" in " ".join(capsys.readouterr().out.split())
    assert made.read_bytes() == before


def test_a_refused_scan_is_a_row_of_a_batch(ten_heads_run, unseen, tmp_path, capsys):
    scan, out = noise_like(unseen, tmp_path / "scan.nii.gz"), tmp_path / "out"
    assert main(["synthesize", str(ten_heads_run), str(scan), str(unseen), "-o", str(out), "--device", "cpu"]) == 4
    assert "unlike those that the model was trained on" in " ".join(capsys.readouterr().err.split())
    assert sidecar(out).input_familiarity.verdict == "familiar"


def test_what_sets_half_a_head_apart_is_in_the_reason(ten_heads_run, unseen, tmp_path):
    volume = read_volume(unseen)
    lower = volume.array.copy()
    lower[:, :, 24:] = 0
    write_volume(tmp_path / "scan.nii.gz", lower, volume.affine)
    words = ["synthesize", str(ten_heads_run), str(tmp_path / "scan.nii.gz"), "-o", str(tmp_path / "out"), "--force"]
    assert main([*words, "--device", "cpu"]) == 0
    assert "mm of head from bottom to top" in sidecar(tmp_path / "out").input_familiarity.reason


def test_a_model_without_a_profile_takes_the_scan_and_says_that_nothing_is_known(ten_heads_run, unseen, tmp_path):
    old = without_profile(ten_heads_run, tmp_path / "old")
    volume = read_volume(noise_like(unseen, tmp_path / "scan.nii.gz"))
    assert check_familiarity(old, volume).verdict is None
    words = ["synthesize", str(tmp_path / "old"), str(tmp_path / "scan.nii.gz"), "-o", str(tmp_path / "out")]
    assert main([*words, "--device", "cpu"]) == 0
    found = sidecar(tmp_path / "out").input_familiarity
    assert found.verdict is None
    assert found.score is None
    assert found.reason
