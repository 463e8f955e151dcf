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
    assert profile.groups["layer 2"].scale == pytest.approx(np.sqrt(np.mean(np.square(distances))), rel=1e-4)
    assert list(profile.groups) == ["detail", "extent", "layer 1", "layer 2"]
    assert 1 < profile.largest < 3
    assert profile.warns_above == WARNS * profile.largest
    assert profile.refuses_above == REFUSES * profile.largest


def test_detail_and_extent_count_in_their_own_units_however_alike_the_training_scans_are(profile):
    assert profile.groups["extent"].spread == (15, 15, 15)
    assert profile.groups["detail"].spread == (0.03, 0.03, 0.03)
    assert profile.groups["extent"].scale == profile.groups["detail"].scale == 1
    same = FamiliarityProfile.of([ORDINARY] * FEWEST)
    assert list(same.groups) == ["detail", "extent"]
    assert same.largest == 1
    assert same.score(dataclasses.replace(ORDINARY, extent_mm=(175.0, 200.0, 180.0))) == pytest.approx(math.sqrt(1 / 6))


def at_the_centre(profile):
    groups = profile.groups
    layers = (groups["layer 1"].centre, groups["layer 2"].centre)
    return Traits(ORDINARY.edges_mm, groups["extent"].centre, groups["detail"].centre, layers)


def test_the_score_is_the_root_mean_square_over_the_groups(profile):
    centre = at_the_centre(profile)
    assert profile.score(centre) == 0
    first = profile.groups["layer 1"]
    away = tuple(c + 3 * first.scale * s for c, s in zip(first.centre, first.spread, strict=True))
    seen = dataclasses.replace(centre, features=(away, centre.features[1]))
    assert profile.distances(seen) == pytest.approx({"detail": 0, "extent": 0, "layer 1": 3, "layer 2": 0})
    assert profile.score(seen) == pytest.approx(3 / 2)


def test_noise_is_refused_for_its_detail_where_the_features_say_nothing(profile):
    noise = dataclasses.replace(at_the_centre(profile), detail=(1.0, 1.0, 1.0))
    with pytest.raises(VolumeError, match=r"most of it from the detail; noisier or sharper"):
        judge(noise, profile)


def test_a_familiar_scan_passes_without_a_word(profile):
    found = judge(with_features(0.0), profile, where="scan.nii.gz")
    assert (found.verdict, found.reason) == ("familiar", "")
    assert found.score < found.warns_above < found.refuses_above


def test_a_scan_between_the_limits_is_warned_of_and_one_beyond_is_refused(profile):
    slope = profile.score(with_features(1000.0)) / 1000
    between = (profile.warns_above + profile.refuses_above) / 2 / slope
    with pytest.warns(
        UserWarning, match=r"scan\.nii\.gz: unlike the scans .* score \d\.\d\d, most of it from the features"
    ):
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


def test_what_is_warned_of_is_refused_where_the_contrast_is_in_doubt_too(profile):
    cut = dataclasses.replace(with_features(0.0), extent_mm=(160.0, 200.0, 155.0))
    with pytest.warns(UserWarning, match="155 mm of head"):
        assert judge(cut, profile).verdict == "warned"
    with pytest.raises(VolumeError, match=r"155 mm of head .*; and only its name speaks for its contrast"):
        judge(cut, profile, in_doubt=True)
    assert judge(cut, profile, in_doubt=True, force=True).verdict == "forced"
    assert judge(with_features(0.0), profile, in_doubt=True).verdict == "familiar"


def test_features_that_are_no_numbers_are_refused(profile):
    with pytest.raises(VolumeError, match="unlike"):
        judge(with_features(math.nan), profile)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"edges_mm": (0.9, 0.9, 3.0)}, r"voxels of 0\.9 x 0\.9 x 3 mm, theirs have 1\.5 x 1\.5 x 1\.5 mm"),
        ({"extent_mm": (160.0, 200.0, 155.0)}, r"155 mm of head from bottom to top, theirs 17\d to 18\d mm"),
        ({"detail": (0.6, 0.6, 0.55)}, r"smoother from bottom to top \(0\.55, theirs 0\.59 to 0\.61\)"),
        (
            {"detail": (0.65, 0.65, 0.6)},
            r"noisier or sharper from left to right \(0\.65, theirs .*\), back to front \(0\.65, theirs .*\)$",
        ),
    ],
)
def test_voxels_extent_and_detail_alone_warn_and_say_what_it_is(profile, change, words):
    with pytest.warns(UserWarning, match=words):
        found = judge(dataclasses.replace(with_features(0.0), **change), profile)
    assert found.verdict == "warned"


def test_layers_that_never_differ_say_nothing():
    same = [dataclasses.replace(seen, features=((1.0, 2.0), seen.features[1])) for seen in scans()]
    profile = FamiliarityProfile.of(same)
    assert list(profile.groups) == ["detail", "extent", "layer 2"]
    assert profile.distances(dataclasses.replace(ORDINARY, features=((9.0, 9.0), (0.0,) * 4))).keys() == {
        "detail",
        "extent",
        "layer 2",
    }


def test_a_profile_is_the_same_after_it_was_written(profile):
    written = TypeAdapter(FamiliarityProfile)
    assert written.validate_json(written.dump_json(profile)) == profile
