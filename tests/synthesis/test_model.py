import dataclasses
import hashlib
import json
import pickle
import shutil

import numpy as np
import pytest
import torch

from unscanned.errors import CheckpointError, ResourceError, VolumeError
from unscanned.files import read_sealed, write_sealed
from unscanned.models import generators
from unscanned.settings import resolve, to_dict
from unscanned.synthesis.context import chain
from unscanned.synthesis.model import Model
from unscanned.synthesis.model_file import load_model, save_model
from unscanned.synthesis.verify import TOLERANCE
from unscanned.volumes.intensity import Contrast, Normalization, head_mask
from unscanned.volumes.nifti import Volume

OVERRIDES = {
    "generator": {"name": "small", "residual": True},
    "discriminator": {"name": "small"},
    "training": {"patch": 16, "validation_stride": 16},
    "synthesis": {"stride": 16},
    "context": {"stride": 16},
}


@pytest.fixture
def model():
    """A chain of two small generators with fresh weights."""
    torch.manual_seed(0)
    networks = [generators.build("small", in_channels=n, residual=True).eval() for n in (1, 2)]
    constants = Normalization(99.9, Contrast(500.0, 0.25, 0.3), Contrast(700.0, 0.2, 0.35))
    return Model(networks, resolve("resgan-acm", overrides=OVERRIDES), constants, {"made": "for a test"})


@pytest.fixture
def scan():
    """A ball, brighter in the middle, on an oblique anisotropic LPS grid."""
    index = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in (20, 23, 18)], indexing="ij"), -1)
    radius = np.linalg.norm(index, axis=-1)
    affine = np.array([[-2.9, 0.2, 0.1, 30], [0.3, -2.4, 0.2, 25], [0.2, -0.1, 4.1, -30], [0, 0, 0, 1.0]])
    return Volume((900 * np.clip(0.9 - radius, 0, None)).astype(np.float32), affine)


def tree(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_model_read_back_makes_the_same_volume_bit_for_bit(model, scan, tmp_path):
    loaded = load_model(save_model(model, tmp_path / "model"))
    assert np.array_equal(loaded.synthesize(scan).array, model.synthesize(scan).array)
    assert loaded.normalization == model.normalization
    assert loaded.settings == model.settings
    assert loaded.provenance == model.provenance
    assert (loaded.source, loaded.target) == ("PD", "T2")
    assert not any(network.training for network in loaded.generators)


def test_a_model_needs_nothing_but_its_own_folder(model, scan, tmp_path):
    expected = model.synthesize(scan).array
    save_model(model, tmp_path / "here")
    shutil.move(tmp_path / "here", tmp_path / "días_磁共振 there")
    assert np.array_equal(load_model(tmp_path / "días_磁共振 there").synthesize(scan).array, expected)


def test_the_same_model_is_written_as_the_same_bytes(model, tmp_path):
    assert tree(save_model(model, tmp_path / "1")) == tree(save_model(model, tmp_path / "2"))


def test_a_run_stands_for_the_model_inside_it(tiny_run):
    assert load_model(tiny_run).sha256 == load_model(tiny_run / "model").sha256


def test_the_output_lies_on_the_grid_of_the_scan_in_the_units_of_the_training_targets(model, scan):
    made = model.synthesize(scan)
    assert made.array.shape == scan.array.shape
    assert np.array_equal(made.affine, scan.affine)
    assert made.array.dtype == np.float32
    assert np.isfinite(made.array).all()
    # A residual generator of fresh weights makes the source plus little, on the scale of the target.
    inside = scan.array > 100
    assert 0.2 < np.median(made.array[inside]) / 700 < 2


def test_no_voxel_lies_below_the_smallest_of_the_training_targets(model, scan):
    free = model.synthesize(scan, clip="none").array
    assert free.min() < -1
    made = model.synthesize(scan).array
    assert made.min() == 0
    assert np.array_equal(made, np.maximum(free, 0))
    target = dataclasses.replace(model.normalization.target, minimum=-1 / 700)
    knows = dataclasses.replace(model, normalization=dataclasses.replace(model.normalization, target=target))
    assert np.array_equal(knows.synthesize(scan).array, np.maximum(free, np.float32(-1 / 700 * 700)))


@pytest.fixture
def small_grid(model):
    """The model with a grid that the head of `scan` does not fill along i and j, and does along k."""

    def of(*shape):
        return dataclasses.replace(model, settings=model.settings.change(prepare={"shape": list(shape)}))

    return of


def test_where_the_grid_of_the_model_holds_the_head_the_rest_is_left_at_zero(small_grid, scan):
    head = head_mask(scan.array)
    whole = small_grid(224, 224, 128).synthesize(scan)
    model = small_grid(19, 22, 17)
    made = model.synthesize(scan)
    assert made.array.shape == scan.array.shape
    outside = model.synthesize(scan, clip="none").array == 0
    assert outside.sum() == scan.array.size - 19 * 22 * 17
    assert not made.array[outside].any()
    assert not outside[head].any()
    assert not made.warnings
    assert np.array_equal(model.synthesize(scan, crop="never").array, whole.array)


def test_where_it_does_not_the_whole_scan_is_mapped_or_what_is_lost_is_told(small_grid, scan):
    head = head_mask(scan.array)
    model = small_grid(16, 16, 8)
    assert np.array_equal(model.synthesize(scan).array, model.synthesize(scan, crop="never").array)
    forced = model.synthesize(scan, crop="always")
    assert (forced.array[head] == 0).any()
    assert any("larger than the model's grid of [16, 16, 8]" in warning for warning in forced.warnings)


def test_the_intensity_scale_of_the_scan_changes_nothing(model, scan):
    other = dataclasses.replace(scan, array=scan.array * 37)
    np.testing.assert_allclose(model.synthesize(other).array, model.synthesize(scan).array, rtol=1e-3, atol=0.5)


def test_the_order_and_direction_of_the_axes_change_nothing(model, scan):
    flipped = scan.array[::-1].transpose(2, 0, 1)
    affine = scan.affine.copy()
    affine[:3, 3] += affine[:3, 0] * (scan.array.shape[0] - 1)
    affine[:3, 0] *= -1
    affine = affine[:, [2, 0, 1, 3]]
    made = model.synthesize(Volume(np.ascontiguousarray(flipped), affine)).array
    np.testing.assert_allclose(made.transpose(1, 2, 0)[::-1], model.synthesize(scan).array, rtol=1e-4, atol=0.1)


@pytest.mark.parametrize("mode", ["patches", "volume"])
def test_mirror_is_the_mean_of_both_ways_round_and_knows_neither_from_the_other(model, scan, mode):
    flipped = dataclasses.replace(scan, array=np.ascontiguousarray(scan.array[::-1]))  # its first axis is left to right
    one, other, mean, mean_of_flipped = (
        model.synthesize(each, mode=mode, mirror=mirror, clip="none").array
        for mirror, each in [(False, scan), (False, flipped), (True, scan), (True, flipped)]
    )
    assert np.abs(one - other[::-1]).max() > 1  # a network is not symmetric
    np.testing.assert_allclose(mean, (one + other[::-1]) / 2, rtol=1e-5, atol=1e-3)
    np.testing.assert_array_equal(mean_of_flipped[::-1], mean)


def test_a_scan_without_a_head_is_refused_by_its_path(model, scan, tmp_path):
    with pytest.raises(VolumeError, match=r"dark\.nii: no contrast inside the head"):
        model.synthesize(Volume(-scan.array - 1, scan.affine, path=tmp_path / "dark.nii"))


@pytest.mark.parametrize("place", [0, 7, 8, 200, -1])
def test_a_flipped_bit_in_the_weights_is_refused(model, tmp_path, place):
    path = save_model(model, tmp_path) / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[place] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="the weights are damaged") as refusal:
        load_model(tmp_path)
    assert refusal.value.exit_code == 5


def test_any_flipped_bit_in_the_facts_is_refused_or_changes_none(model, tmp_path):
    path = save_model(model, tmp_path) / "model.json"
    whole, before = path.read_bytes(), load_model(tmp_path)
    refusals = 0
    for place in np.random.default_rng(0).integers(8 * len(whole), size=200):
        content = bytearray(whole)
        content[place // 8] ^= 1 << (place % 8)
        path.write_bytes(content)
        try:
            found = load_model(tmp_path)
        except CheckpointError:
            refusals += 1
        else:
            assert (found.sha256, found.normalization, found.settings, found.provenance) == (
                before.sha256,
                before.normalization,
                before.settings,
                before.provenance,
            )
    assert refusals > 100


def test_constants_that_were_changed_are_refused(model, tmp_path):
    path = save_model(model, tmp_path) / "model.json"
    facts = json.loads(path.read_text())
    facts["normalization"]["source"]["mean"] += 0.1
    path.write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match="it was changed since it was written"):
        load_model(tmp_path)


def test_the_identity_is_that_of_what_decides_a_volume(model, tmp_path):
    sha256 = load_model(save_model(model, tmp_path)).sha256
    change(tmp_path, provenance={"made": "later"})
    assert load_model(tmp_path).sha256 == sha256
    other = json.loads(json.dumps(dataclasses.asdict(model.normalization)))
    other["source"]["std"] += 0.1
    change(tmp_path, normalization=other)
    assert load_model(tmp_path).sha256 != sha256


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_file_that_is_cut_short_is_refused(model, tmp_path, name, share):
    path = save_model(model, tmp_path) / name
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError):
        load_model(tmp_path)


def change(folder, **facts):
    write_sealed(folder / "model.json", read_sealed(folder / "model.json") | facts)


@pytest.mark.parametrize(
    "facts",
    [
        {"format": 1},
        {"stages": 3},
        {"stages": "two"},
        {"weights_sha256": None},
        {"normalization": {}},
        {"normalization": None},
        {"settings": {}},
        {"settings": {"generator": {"name": "small", "residual": True, "slope": 0.2}}},
    ],
)
def test_facts_that_do_not_fit_are_refused(model, tmp_path, facts):
    save_model(model, tmp_path)
    change(tmp_path, **facts)
    with pytest.raises(CheckpointError):
        load_model(tmp_path)


def test_weights_of_another_architecture_are_refused(model, tmp_path):
    save_model(model, tmp_path)
    settings = to_dict(model.settings)
    settings["generator"]["name"] = "nie"
    change(tmp_path, settings=settings)
    with pytest.raises(CheckpointError, match="size mismatch"):
        load_model(tmp_path)


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt", "model.pkl"])
def test_a_pickle_is_refused_and_not_run(model, tmp_path, name):
    save_model(model, tmp_path / "model")
    if name != "model.safetensors":
        (tmp_path / "model" / "model.safetensors").unlink()
    path = tmp_path / "model" / name
    path.write_bytes(pickle.dumps(Trap(tmp_path / "pwned.txt")))
    change(tmp_path / "model", weights_sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(CheckpointError):
        load_model(tmp_path / "model")
    with pytest.raises(CheckpointError):
        load_model(path)
    assert not (tmp_path / "pwned.txt").exists()


@pytest.mark.parametrize("name", ["", "nothing", "file"])
def test_what_is_no_model_is_refused_with_what_is_one(tmp_path, name):
    (tmp_path / "file").write_text("no model")
    with pytest.raises(CheckpointError, match=r"model\.json and model\.safetensors"):
        load_model(tmp_path / name)


@pytest.mark.parametrize("mode", ["patches", "volume"])
def test_bfloat16_differs_from_float32_within_its_tolerance(model, scan, mode, monkeypatch):
    monkeypatch.setattr("unscanned.machine.precision.available", lambda *_: list(TOLERANCE))
    exact, rounded = (model.synthesize(scan, mode=mode, precision=name).array for name in ("float32", "bfloat16"))
    difference = np.abs(exact - rounded).max() / model.normalization.target.scale
    assert 1e-4 < difference < TOLERANCE["bfloat16"]


def test_where_a_gpu_does_not_hold_a_patch_the_cpu_takes_over_and_says_so(model, scan, monkeypatch):
    expected = model.synthesize(scan).array
    moves = []

    def crowded(*arguments, device="cpu", **options):
        if str(device) == "cuda":
            raise ResourceError("memory does not hold a patch")
        return chain(*arguments, device=device, **options)

    monkeypatch.setattr("unscanned.synthesis.model.chain", crowded)
    monkeypatch.setattr("unscanned.synthesis.model.check_precision", lambda *_, **__: None)
    monkeypatch.setattr(Model, "device", torch.device("cuda"))
    monkeypatch.setattr(Model, "to", lambda self, device: moves.append(str(device)))
    made = model.synthesize(scan)
    assert np.array_equal(made.array, expected)
    assert made.warnings == ("memory of cuda did not hold a single patch; the CPU took over, in float32",)
    assert moves == ["cpu", "cuda"]
