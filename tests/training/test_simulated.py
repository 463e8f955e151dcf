"""Simulated pairs in training: each patch is cut from the pair that its step names, whatever was drawn before."""

import re

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import COARSE

from unscanned.datasets.pairs import find_pairs
from unscanned.errors import CheckpointError, Interrupted, SettingsError
from unscanned.settings import Augmentation, Prepare, Spread, Training, decisive, read_spread, without_effect
from unscanned.simulation.stream import Stream
from unscanned.synthesis.model_file import load_model
from unscanned.training.batches import PatchBatches
from unscanned.training.prepare import normalization, prepare
from unscanned.training.run import check_settings, train
from unscanned.training.simulated import SimulatedPairs, simulated_pairs
from unscanned.volumes.patches import cut

SHAPE = (32, 32, 32)
GRID = {"shape": SHAPE, "spacing_mm": 6.0}


@pytest.fixture(scope="module")
def cases(tiny_dataset, tmp_path_factory):
    prepared, _ = prepare(find_pairs(tiny_dataset)[:2], tmp_path_factory.mktemp("cache"), Prepare(**GRID))
    return prepared


@pytest.fixture(scope="module")
def stream():
    """Two heads, drawn coarsely and kept."""
    drawn = Stream(None, seed=4, shape=SHAPE, spacing_mm=6.0, built_in=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unscanned.simulation.stream.draw_built_in", COARSE)
        drawn.load()
    return drawn


def test_a_training_can_ask_for_oblique_slices(tiny_settings):
    own = {"share": 1.0, "tilt_deg": 10.0}
    settings = tiny_settings.change(prepare=GRID, simulated=own)
    oblique, usual = (simulated_pairs(each).stream for each in (settings, settings.change(simulated={"tilt_deg": 3.0})))
    assert read_spread(oblique.spread) == read_spread({"tilt_deg": 10.0}) != read_spread(usual.spread) == Spread()
    assert decisive(settings)["simulated"] == own
    [without] = without_effect(settings.change(simulated={"share": 0.0})).values()
    assert without == {"simulated.tilt_deg": 10.0}
    with pytest.raises(SettingsError, match=r"simulated\.tilt_deg"):
        settings.change(simulated={"tilt_deg": 11.0})


def test_a_training_can_ask_for_extracted_brains_with_little_noise(tiny_settings):
    own = {"share": 1.0, "brain": 1.0, "defaced": 0.0, "noise": [0.01, 0.02]}
    settings = tiny_settings.change(prepare={"shape": [32, 32, 32], "spacing_mm": 6.0}, simulated=own)
    assert decisive(settings)["simulated"] == own
    pairs = simulated_pairs(settings)
    assert read_spread(pairs.stream.spread) == Spread(brain=1.0, defaced=0.0, noise=(0.01, 0.02))
    inside = pairs.stream.draw(0).head.mean()
    whole = simulated_pairs(settings.change(simulated={"brain": 0.0, "cropped": 0.0})).stream.draw(0).head.mean()
    assert inside < 0.7 * whole


@pytest.fixture
def batches_of(cases, stream):
    def make(share, **options):
        settings = Training(patch=16, batch=6, seed=2, min_head=0.2)
        pairs = SimulatedPairs(stream, share=share, size=2, every=3)
        return PatchBatches(cases, normalization(cases), settings, simulated=pairs, **options)

    return make


def test_every_patch_is_cut_from_the_pair_that_it_names(cases, batches_of):
    batches = batches_of(0.5)
    constants, stream = batches.normalization, batches.simulated.stream
    by_name = {case.name: case for case in cases}
    simulated = set()
    for step in range(5):
        sources, targets = batches(step)
        lines = batches.describe(step).split("; ")
        told = [(line.split(" at ")[0], start) for line in lines for start in re.findall(r"\(([^)]*)\)", line)]
        found = []
        for name, start in told:
            pair = by_name.get(name) or stream.draw(int(name.removeprefix("wide-")))
            place = [int(n) for n in start.split(",")]
            assert cut(pair.head, place, 16).mean() >= 0.2
            found.append(constants.source.standardize(cut(pair.source, place, 16)))
            if name not in by_name:
                simulated.add(int(name.removeprefix("wide-")))
                assert step // 3 <= int(name.removeprefix("wide-")) < step // 3 + 2
        assert len(found) == 6
        for source in sources.numpy()[:, 0]:
            assert any(np.array_equal(source, wanted) for wanted in found)
        assert targets.shape == (6, 1, 16, 16, 16)
    assert len(simulated) == 3


def test_a_batch_does_not_depend_on_what_was_drawn_before(batches_of):
    one, other = (batches_of(0.7, augmentation=Augmentation(flip=0.5)) for _ in range(2))
    for step in (0, 1, 5):
        one(step)
    assert all(torch.equal(a, b) for a, b in zip(one(4), other(4), strict=True))
    assert len(one.simulated._pool) <= 2


def test_no_share_is_none_and_a_whole_share_is_all(batches_of):
    assert "wide" not in batches_of(0.0).describe(0)
    assert "sub-" not in batches_of(1.0).describe(0)


RECIPE = {"prepare": GRID, "simulated": {"share": 0.5, "pool": 2, "every": 2}}


@pytest.mark.usefixtures("coarse_heads")
def test_an_interrupted_run_goes_on_to_the_same_model_with_other_workers(tiny_dataset, tiny_settings, tmp_path):
    settings = tiny_settings.change(**RECIPE)
    whole = train(tiny_dataset, tmp_path / "whole", settings).model
    counted = iter(range(10))
    with pytest.raises(Interrupted):
        train(tiny_dataset, tmp_path / "run", settings, should_stop=lambda: next(counted, 9) >= 6)
    model = train(tiny_dataset, tmp_path / "run", settings.change(training={"workers": 1})).model
    one, other = (safetensors.torch.load_file(folder / "model.safetensors") for folder in (whole, model))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert load_model(model).provenance["label_maps"] == {}
    with pytest.raises(CheckpointError, match=r"simulated\.share = 0\.5, now 0\.6"):
        train(tiny_dataset, tmp_path / "run", settings.change(simulated={"share": 0.6}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prepare": {"spacing_mm": None}}, r"prepare\.spacing_mm: simulated pairs need a voxel size"),
        ({"data": {"target": "SWI"}}, "a contrast that cannot be simulated"),
        ({"context": {"stages": 2}}, r"simulated\.share: a simulated pair has no volume of the stage before"),
    ],
)
def test_what_cannot_be_simulated_is_refused_before_any_work(tiny_dataset, tiny_settings, tmp_path, change, words):
    settings = tiny_settings.change(**RECIPE).change(**change)
    with pytest.raises(SettingsError, match=words):
        check_settings(settings)
    with pytest.raises(SettingsError, match=words):
        train(tiny_dataset, tmp_path / "run", settings)
    assert not (tmp_path / "run").exists()
