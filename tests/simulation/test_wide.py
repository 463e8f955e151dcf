"""Subjects with the spread of real scanners: what is drawn, that it is a function of its number, and its parts."""

import numpy as np
import pytest
from scipy import ndimage

from unscanned.errors import SettingsError
from unscanned.settings import Spread, read_spread
from unscanned.simulation import acquisition
from unscanned.simulation.acquisition import Geometry, Receiver
from unscanned.simulation.lesions import draw_lesions, find_sites
from unscanned.simulation.relaxation import LESION, NAMES, typical_values
from unscanned.simulation.stream import Stream
from unscanned.simulation.wide import _draw_variation, _Painter, draw_subject
from unscanned.volumes.intensity import head_mask, head_scale

SHAPE, SPACING = (56, 68, 60), (3.0, 3.0, 3.0)
PLAIN = Spread(noise=(1e-6, 1e-6), receive=(0.0, 0.0), brain=0.0, defaced=0.0, cropped=0.0)
WHITE, GREY, FLUID = (NAMES.index(name) for name in ("white matter", "grey matter", "cerebrospinal fluid"))


def draw(head, subject=0, contrasts=("T1", "T2"), target="T2", **options):
    return draw_subject(head, SHAPE, SPACING, contrasts, target=target, seed=1, subject=subject, **options)


def test_a_subject_is_a_function_of_its_seed_and_number(small_head):
    first, other = draw(small_head, 3), draw(small_head, 4)
    again = draw(small_head, 3)
    for contrast in ("T1", "T2"):
        np.testing.assert_array_equal(first.images[contrast], again.images[contrast])
        assert not np.array_equal(first.images[contrast], other.images[contrast])
    np.testing.assert_array_equal(first.tissues, again.tissues)


def test_the_noise_free_image_is_what_many_scans_have_in_common(small_head):
    spread = Spread(noise=(0.05, 0.05), brain=0.0, defaced=0.0, cropped=0.0, ghosts=0.0)
    drawn = draw(small_head, 5, spread=spread, clean=("T2",))
    assert set(drawn.clean) == {"T2"}
    bright = drawn.clean["T2"] > 1
    residual = (drawn.images["T2"] - drawn.clean["T2"])[bright]
    assert abs(residual.mean()) < 0.02
    assert 0.3 * drawn.noise_sigma["T2"] < residual.std() < 1.3 * drawn.noise_sigma["T2"]


def test_the_image_of_the_tissues_alone_has_the_contrast_of_the_literature(small_head):
    drawn = draw(small_head, 5, spread=PLAIN, clean=("T2",))
    clean, typical = drawn.clean["T2"], drawn.typical["T2"]
    white, grey = (float(np.median(typical[ndimage.binary_erosion(drawn.tissues == n)])) for n in (WHITE, GREY))
    signal = drawn.protocols["T2"].signal(typical_values(drawn.field_t))
    assert grey / white == pytest.approx(signal[GREY] / signal[WHITE], rel=0.1)
    assert np.corrcoef(typical[drawn.tissues > 0], clean[drawn.tissues > 0])[0, 1] > 0.95
    assert not np.allclose(typical, clean, atol=0.02)


def test_the_mean_over_patients_is_nearer_than_one_of_them_and_leaves_the_scan_as_it_is(small_head):
    plain = draw(small_head, 5, spread=PLAIN, clean=("T2",))
    one, many = (draw(small_head, 5, spread=PLAIN, clean=("T2",), patients=n).posterior["T2"] for n in (1, 12))
    drawn = draw(small_head, 5, spread=PLAIN, clean=("T2",), patients=1)
    assert not plain.posterior
    np.testing.assert_array_equal(drawn.images["T2"], plain.images["T2"])
    np.testing.assert_array_equal(drawn.posterior["T2"], one)
    clean = drawn.clean["T2"]
    inside = head_mask(clean)
    unit = clean / head_scale(clean, inside)
    errors = [float(np.sqrt(np.mean((image - unit)[inside] ** 2))) for image in (many, one)]
    assert errors[0] < errors[1] < 0.2
    assert np.percentile(many[inside], 99.9) < 1  # extremes average out


def test_every_pair_of_contrasts_can_be_drawn(small_head):
    for source, target in (("PD", "T2"), ("T1", "T2"), ("T2", "T1"), ("T1", "FLAIR"), ("T2", "PD")):
        drawn = draw(small_head, 1, (source, target), target)
        assert list(drawn.images) == [source, target]
        for image in drawn.images.values():
            assert image.shape == SHAPE
            assert image.dtype == np.float32
            assert np.isfinite(image).all()
            assert 0.5 < np.median(image[drawn.tissues == WHITE]) < 2


def test_tissues_are_told_apart_by_the_contrast_that_is_made_for_it(small_head):
    for subject in range(6):
        drawn = draw(small_head, subject, ("T2", "T1"), "T1", spread=PLAIN)
        t1, t2 = (
            [float(np.median(drawn.images[c][drawn.tissues == n])) for n in (WHITE, GREY, FLUID)] for c in ("T1", "T2")
        )
        assert t1[0] > t1[1] > t1[2]
        assert t2[0] < t2[2]


def test_coverage_leaves_what_it_says(small_head):
    seen = {}
    for name, spread in (
        ("whole", Spread(brain=0.0, defaced=0.0, cropped=0.0)),
        ("defaced", Spread(brain=0.0, defaced=1.0, cropped=0.0)),
        ("brain", Spread(brain=1.0, defaced=0.0, cropped=0.0)),
    ):
        drawn = draw(small_head, 2, spread=spread)
        assert drawn.coverage == name
        seen[name] = drawn.tissues
        cut = drawn.images["T1"] == 0
        np.testing.assert_array_equal(cut, drawn.images["T2"] == 0)
    brain = np.isin(seen["whole"], (WHITE, GREY))
    assert (seen["brain"][brain] > 0).mean() > 0.98
    assert (seen["defaced"][brain] > 0).mean() > 0.97
    assert (seen["defaced"] > 0).sum() < 0.98 * (seen["whole"] > 0).sum()
    assert (seen["brain"] > 0).sum() < 1.5 * brain.sum()


def test_oblique_slices_tilt_the_head_and_defacing_still_leaves_the_brain(small_head):
    for subject in range(6):
        whole, defaced = (
            draw(small_head, subject, spread=Spread(tilt_deg=10.0, brain=0.0, defaced=share, cropped=0.0)).tissues
            for share in (0.0, 1.0)
        )
        straight = draw(small_head, subject, spread=Spread(tilt_deg=0.0, brain=0.0, defaced=0.0, cropped=0.0)).tissues
        assert (whole != straight).mean() > 0.02
        brain = np.isin(whole, (WHITE, GREY))
        assert (defaced[brain] > 0).mean() > 0.97


def test_a_cropped_field_of_view_cuts_a_box(small_head):
    spread = Spread(brain=0.0, defaced=0.0, cropped=1.0)
    kept = [draw(small_head, subject, spread=spread).images["T1"] > 0 for subject in range(4)]
    assert any(not mask[:, :, 0].any() or not mask[:, :, -1].any() or not mask[0].any() for mask in kept)
    for mask in kept:
        box = np.ix_(*(np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)))
        assert mask[box].mean() > 0.99


def test_lesions_lie_in_white_matter_and_nowhere_else(small_head):
    loads = []
    for seed in range(30):
        painted = draw_lesions(np.random.default_rng(seed), small_head.tissues, small_head.sites, small_head.spacing_mm)
        changed = painted != small_head.tissues
        assert (small_head.tissues[changed] == WHITE).all()
        assert (painted[changed] >= LESION).all()
        loads.append(changed.sum() * small_head.spacing_mm**3 / 1000)
    assert min(loads) == 0
    assert max(loads) > 10
    assert len(set(np.round(loads, 2))) > 10


@pytest.fixture(scope="module")
def ball():
    """Voxels of 1 mm around a ventricle of 12 mm: white matter to 50 mm, grey matter to 54, fluid to 57, bone to 62."""
    at = np.linalg.norm(np.indices((128, 128, 128)) - 63.5, axis=0)
    tissues = np.zeros(at.shape, np.uint8)
    for name, radius in (("bone", 62), ("cerebrospinal fluid", 57), ("grey matter", 54), ("white matter", 50)):
        tissues[at < radius] = NAMES.index(name)
    tissues[at < 12] = FLUID
    return tissues, at


def test_lesions_of_each_kind_begin_where_their_name_says(ball):
    tissues, from_middle = ball
    radii = {kind: from_middle[tuple(at.T)] for kind, at in find_sites(tissues, 1.0).items()}
    bounds = {"periventricular": (12, 19), "deep": (20, 46), "juxtacortical": (47, 50)}
    assert set(radii) == set(bounds)
    for kind, (low, high) in bounds.items():
        # Distances are measured on every other voxel.
        assert low - 2 <= radii[kind].min() < low + 3
        assert high - 3 < radii[kind].max() <= high + 2


def test_some_subjects_have_no_lesions_some_small_ones_and_some_confluent_ones(ball):
    tissues, _ = ball
    sites = find_sites(tissues, 1.0)
    largest_ml = []
    for seed in range(60):
        found, count = ndimage.label(draw_lesions(np.random.default_rng(seed), tissues, sites, 1.0) >= LESION)
        largest_ml.append(np.bincount(found.ravel())[1:].max() / 1000 if count else 0.0)
    largest_ml = np.array(largest_ml)
    assert 0.12 < (largest_ml == 0).mean() < 0.4
    assert 0.05 < (largest_ml > 5).mean() < 0.3
    assert ((largest_ml > 0) & (largest_ml < 1)).mean() > 0.15


def test_tissues_vary_smoothly_and_from_voxel_to_voxel():
    axes = acquisition.axes_of((40, 40, 40), (1.0, 1.0, 1.0))
    inside = np.arange(40**3)
    near, far, spreads = [], [], []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        vary = _draw_variation(rng, axes, inside, np.full(40**3, WHITE, np.uint8))
        values = typical_values(3.0)
        log_density = np.log(vary(values).proton_density / values.proton_density[WHITE]).reshape(40, 40, 40)
        spreads.append(log_density.std())
        near.append(np.corrcoef(log_density[:-1].ravel(), log_density[1:].ravel())[0, 1])
        far.append(np.corrcoef(log_density[:-3].ravel(), log_density[3:].ravel())[0, 1])
    assert 0.003 < min(spreads) < max(spreads) < 0.05
    assert np.mean(near) > 0.3, "without a smooth part neighbours would not agree"
    assert np.mean(near) < 0.9, "without grain neighbours would agree"
    np.testing.assert_allclose(near, far, atol=0.1, err_msg="grain has no neighbours, and the rest is smooth over 3 mm")


def test_pulsation_takes_signal_from_fluid_alone():
    axes = acquisition.axes_of((30, 30, 30), (1.0, 1.0, 1.0))
    half = np.repeat(np.uint8([WHITE, FLUID]), 30**3 // 2)
    least = {WHITE: [], FLUID: []}
    for seed in range(12):
        vary = _draw_variation(np.random.default_rng(seed), axes, np.arange(30**3), half)
        values = typical_values(3.0)
        here = vary(values).proton_density / values.proton_density[half]
        for tissue, found in least.items():
            found.append(here[half == tissue].mean())
    assert min(least[WHITE]) > 0.94
    assert min(least[FLUID]) < 0.85


def test_ghosts_lie_a_shift_away_along_the_phase_axis_and_hold_what_is_missing():
    signal = np.zeros((20, 24, 16), np.float32)
    signal[10, 12, 8] = 1
    receiver = Receiver(np.ones_like(signal), np.ones((1, 1, 16), np.float32), 0.03, 1, 0.25)
    image = receiver.receive(signal)
    assert image[10, 6, 8] == pytest.approx(0.03)
    assert image[10, 18, 8] == pytest.approx(0.03)
    assert image.sum() == pytest.approx(1)
    np.testing.assert_array_equal(receiver.receive(signal, ghosts=False), signal)


def test_receivers_have_ghosts_as_often_and_as_strong_as_the_spread_says():
    axes = acquisition.axes_of((24, 24, 24), (2.0, 2.0, 2.0))
    geometry, field = Geometry(2, (2.0, 2.0, 2.0), (2.0, 2.0, 2.0)), np.ones((24, 24, 24), np.float32)
    drawn = [acquisition.draw_receiver(np.random.default_rng(n), geometry, axes, field, 0.3) for n in range(400)]
    ghosts = np.array([receiver.ghost for receiver in drawn])
    assert 0.2 < (ghosts != 0).mean() < 0.4
    assert 0.02 < np.abs(ghosts).max() <= 0.03
    assert {receiver.ghost_axis for receiver in drawn} == {0, 1}
    assert not any(
        acquisition.draw_receiver(np.random.default_rng(n), geometry, axes, field, 0.0).ghost for n in range(50)
    )


def test_a_receive_field_is_smooth_and_stays_within_twice_its_strength():
    axes = acquisition.axes_of((60, 60, 60), (4.0, 4.0, 4.0))
    fields = np.array([acquisition.draw_field(np.random.default_rng(seed), axes, 0.2) for seed in range(20)])
    assert np.exp(-0.4) - 1e-5 <= fields.min() < 0.75
    assert 1.35 < fields.max() <= np.exp(0.4) + 1e-5
    for axis in (1, 2, 3):
        assert np.abs(np.diff(fields, axis=axis)).max() < 0.1, "4 mm change it little"


def test_thick_slices_keep_the_mean_and_blur_across_themselves_alone():
    fine = acquisition.axes_of((40, 40, 60), (1.0, 1.0, 1.0))
    signal = np.zeros((40, 40, 60), np.float32)
    signal[10:30, 10:30, 20:40] = 1
    geometry = Geometry(2, (1.0, 1.0, 5.0), (1.0, 1.0, 5.0))
    at = geometry.axes_mm(np.array([40.0, 40.0, 60.0]))
    acquired = acquisition.sample(signal, fine, geometry, at)
    assert acquired.shape == (40, 40, 12)
    assert acquired.sum() * 5 == pytest.approx(signal.sum(), rel=0.01)
    np.testing.assert_allclose(acquired[20, 20, 5:7], 1, atol=0.03)
    back = acquisition.interpolate(acquired, at, fine)
    across, along = back[20, 20], back[:, 20, 30]
    assert np.sum((across > 0.05) & (across < 0.95)) >= 2 * np.sum((along > 0.05) & (along < 0.95))


def test_a_voxel_across_an_inverted_and_a_recovered_tissue_holds_the_magnitude_of_their_mean():
    axes, extent = acquisition.axes_of((8, 8, 12), (1.0, 1.0, 1.0)), np.array([8.0, 8.0, 12.0])
    painter = _Painter(np.ones((8, 8, 12), np.uint8), axes, Geometry(2, (1.0, 1.0, 4.0), (1.0, 1.0, 4.0)), extent)
    halves = np.tile(np.float32([1, 1, -0.5, -0.5]), 8 * 8 * 3)
    np.testing.assert_allclose(painter.sample(halves), 0.25, atol=0.05)
    np.testing.assert_allclose(painter.sample(np.full_like(halves, -1)), 1, atol=1e-5)


def test_a_constant_stays_constant_through_slices_and_interpolation():
    fine = acquisition.axes_of((50, 50, 50), (1.0, 1.0, 1.0))
    for seed in range(5):
        rng = np.random.default_rng(seed)
        geometry = acquisition.draw_geometry(rng, (1.5, 1.5, 1.5), (0.8, 6.0), volumetric=0.4)
        at = geometry.axes_mm(np.full(3, 50.0))
        acquired = acquisition.sample(np.ones((50, 50, 50), np.float32), fine, geometry, at)
        inner = tuple(slice(n // 3, n - n // 3) for n in acquired.shape)
        np.testing.assert_allclose(acquired[inner], 1, atol=0.03)
        np.testing.assert_allclose(acquisition.interpolate(np.ones_like(acquired), at, fine), 1, rtol=1e-6)


def test_slices_run_across_every_axis_and_reach_six_mm():
    drawn = [
        acquisition.draw_geometry(np.random.default_rng(seed), (1.0, 1.0, 1.0), (0.8, 6.0), volumetric=0.45)
        for seed in range(200)
    ]
    thickness = [geometry.width_mm[geometry.slice_axis] for geometry in drawn]
    assert {geometry.slice_axis for geometry in drawn} == {0, 1, 2}
    assert 0.8 <= min(thickness) < 1.0
    assert 5.5 < max(thickness) <= 6.0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("noise", (0.2, 0.1)),
        ("noise", (0.0, 0.1)),
        ("noise", (float("nan"), 0.1)),
        ("receive", (-0.1, 0.1)),
        ("thickness_mm", (2.0, 1.0)),
        ("thickness_mm", (1.0, float("inf"))),
        ("deformation_mm", float("nan")),
        ("deformation_mm", 50.0),
        ("tilt_deg", 11.0),
        ("brain", 1.5),
        ("cropped", -0.1),
        ("volumetric", float("nan")),
        ("ghosts", 1.5),
    ],
)
def test_a_spread_that_cannot_be_is_refused_by_name(name, value):
    with pytest.raises(SettingsError, match=f"spread.{name}"):
        read_spread({name: value})


def test_where_all_are_extracted_brains_none_is_left_to_be_defaced(small_head):
    spread = read_spread({"brain": 1.0})
    assert spread.defaced > 0
    assert {draw(small_head, subject, spread=spread).coverage for subject in range(8)} == {"brain"}


def test_a_streamed_pair_is_prepared_and_does_not_depend_on_what_was_drawn_before(small_head):
    options = {"source": "T1w", "target": "T2w", "shape": SHAPE, "spacing_mm": 3.0, "built_in": 1, "seed": 4}
    stream, other = Stream(**options, clean=True), Stream(**options)
    stream._heads[0] = other._heads[0] = small_head  # drawing one takes seconds
    stream.draw(1)
    pair = stream.draw(7)
    np.testing.assert_array_equal(pair.source, other.draw(7).source)
    assert (pair.name, pair.subject) == ("wide-000007", "small")
    assert pair.source.dtype == pair.target.dtype == np.float32
    assert np.percentile(pair.source[pair.head], 99.9) == pytest.approx(1, rel=1e-3)
    assert 0.2 < np.corrcoef(pair.target[pair.head], pair.clean[pair.head])[0, 1] <= 1
    assert set(np.unique(pair.labels)) <= set(range(LESION + 1))
    assert other.draw(7).clean is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("source", "DWI"),
        ("target", "PDw"),
        ("seed", -1),
        ("shape", (4, 64, 64)),
        ("shape", (10**5, 10**5, 10**5)),
        ("spacing_mm", float("nan")),
        ("spacing_mm", 0.0),
        ("built_in", 0),
        ("labels", ()),
    ],
)
def test_a_stream_that_cannot_be_is_refused(name, value):
    with pytest.raises(SettingsError, match=r"contrast|" + name):
        Stream(**{name: value})
