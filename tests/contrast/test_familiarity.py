"""The profile of what training scans were like: its scores and limits by hand, its words, and who is refused."""

import dataclasses
import math

import numpy as np
import pytest
from pydantic import TypeAdapter

from unscanned.contrast.familiarity import FEWEST, REFUSES, WARNS, FamiliarityProfile, Traits, judge
from unscanned.errors import VolumeError

ORDINARY = Traits((1.5, 1.5, 1.5), (160.0, 200.0, 180.0), (0.6, 0.6, 0.6), ((0.0, 0.0), (0.0, 0.0, 0.0, 0.0)))


def scans(count=12, seed=0):
    """Scans with features from a normal distribution, and extents and detail that differ a little."""
    rng = np.random.default_rng(seed)
    return [
        Traits(
            (1.5, 1.5, 1.5),
            tuple((np.array(ORDINARY.extent_mm) + rng.uniform(-5, 5, 3)).tolist()),
            tuple(rng.uniform(0.59, 0.61, 3).tolist()),
            (tuple(rng.normal(size=2).tolist()), tuple(rng.normal(size=4).tolist())),
        )
        for _ in range(count)
    ]


@pytest.fixture
def profile():
    return FamiliarityProfile.of(scans())


def with_features(value):
    return dataclasses.replace(ORDINARY, features=((value,) * 2, (value,) * 4))


def test_few_training_scans_make_no_profile():
    assert FamiliarityProfile.of(scans(FEWEST - 1)) is None
    assert FamiliarityProfile.of(scans(FEWEST)).scans == FEWEST


def test_training_scans_judged_by_the_others_have_a_mean_square_score_of_one():
    training = scans()
    layers = np.array([list(seen.features[1]) for seen in training])
    distances = []
    for index, own in enumerate(layers):
        others = np.delete(layers, index, axis=0)
        variance = others.var(0, ddof=1)
        distances.append(np.sqrt(np.mean((own - others.mean(0)) ** 2 / (variance + 0.09 * variance.mean()))))
    profile = FamiliarityProfile.of(training)
    assert profile.layers[1].scale == pytest.approx(np.sqrt(np.mean(np.square(distances))), rel=1e-4)
    assert 1 < profile.largest < 3
    assert profile.warns_above == WARNS * profile.largest
    assert profile.refuses_above == REFUSES * profile.largest


def test_the_score_is_the_root_mean_square_over_the_layers(profile):
    centre = dataclasses.replace(ORDINARY, features=tuple(layer.centre for layer in profile.layers))
    assert profile.score(centre) == 0
    first = profile.layers[0]
    away = tuple(c + 3 * first.scale * s for c, s in zip(first.centre, first.spread, strict=True))
    seen = dataclasses.replace(centre, features=(away, profile.layers[1].centre))
    assert profile.score(seen) == pytest.approx(3 / math.sqrt(2))


def test_a_familiar_scan_passes_without_a_word(profile):
    found = judge(with_features(0.0), profile, where="scan.nii.gz")
    assert (found.verdict, found.reason) == ("familiar", "")
    assert found.score < found.warns_above < found.refuses_above


def test_a_scan_between_the_limits_is_warned_of_and_one_beyond_is_refused(profile):
    slope = profile.score(with_features(100.0)) / 100
    between = (profile.warns_above + profile.refuses_above) / 2 / slope
    with pytest.warns(UserWarning, match=r"scan\.nii\.gz: unlike the scans .* score \d\.\d\d: the network's features"):
        found = judge(with_features(between), profile, where="scan.nii.gz")
    assert found.verdict == "warned"
    beyond = with_features(1.2 * profile.refuses_above / slope)
    with pytest.raises(VolumeError) as caught:
        judge(beyond, profile, where="scan.nii.gz")
    parts = caught.value.parts
    assert parts["where"] == "scan.nii.gz"
    assert "as the 12 training scans" in parts["expected"]
    assert "--force" in parts["do"]
    forced = judge(beyond, profile, force=True)
    assert forced.verdict == "forced"
    assert forced.score > forced.refuses_above
    assert "features" in forced.reason


def test_features_that_are_no_numbers_are_refused(profile):
    with pytest.raises(VolumeError, match="unlike"):
        judge(with_features(math.nan), profile)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"edges_mm": (0.9, 0.9, 3.0)}, r"voxels of 0\.9 x 0\.9 x 3 mm, theirs have 1\.5 x 1\.5 x 1\.5 mm"),
        ({"extent_mm": (160.0, 200.0, 90.0)}, r"90 mm of head from bottom to top, theirs 17\d to 18\d mm"),
        ({"detail": (0.6, 0.6, 0.5)}, r"smoother from bottom to top \(0\.50, theirs 0\.59 to 0\.61\)"),
        (
            {"detail": (0.9, 0.9, 0.6)},
            r"noisier or sharper from left to right \(0\.90, theirs .*\), back to front \(0\.90, theirs .*\)$",
        ),
    ],
)
def test_voxels_extent_and_detail_alone_warn_and_say_what_it_is(profile, change, words):
    with pytest.warns(UserWarning, match=words):
        found = judge(dataclasses.replace(with_features(0.0), **change), profile)
    assert found.verdict == "warned"


def test_layers_that_never_differ_say_nothing():
    same = [dataclasses.replace(seen, features=((1.0, 2.0), (3.0,))) for seen in scans()]
    profile = FamiliarityProfile.of(same)
    assert (profile.layers, profile.largest, profile.warns_above) == ((), None, None)
    found = judge(with_features(1e9), profile)
    assert (found.verdict, found.score) == ("familiar", None)


def test_a_profile_is_the_same_after_it_was_written(profile):
    written = TypeAdapter(FamiliarityProfile)
    assert written.validate_json(written.dump_json(profile)) == profile
