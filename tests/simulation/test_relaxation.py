"""The tissue values against what the sources named beside them report."""

import numpy as np
import pytest

from unscanned.simulation.relaxation import FIELDS_T, LESION, NAMES, VALUES, draw_values, typical_values

# T1 and T2 in ms, least and greatest of the sources in relaxation.py.
REPORTED = {
    (1.5, "white matter"): ((500, 884), (70, 80)),
    (3.0, "white matter"): ((832, 1084), (69, 80)),
    (1.5, "grey matter"): ((833, 1197), (83, 95)),
    (3.0, "grey matter"): ((1331, 1820), (83, 110)),
    (1.5, "deep grey matter"): ((646, 1109), (70, 95)),
    (3.0, "deep grey matter"): ((832, 1395), (69, 110)),
    (1.5, "cerebrospinal fluid"): ((4000, 4500), (329, 2000)),
    (3.0, "cerebrospinal fluid"): ((4000, 4500), (329, 2000)),
    (1.5, "fat"): ((288, 343), (58, 165)),
    (3.0, "fat"): ((371, 382), (68, 133)),
    (1.5, "muscle"): ((856, 1130), (27, 44)),
    (3.0, "muscle"): ((898, 1420), (29, 50)),
    (1.5, "marrow"): ((288, 549), (49, 165)),
    (3.0, "marrow"): ((365, 586), (49, 133)),
    (1.5, "vessels"): ((1440, 1442), (50, 290)),
    (3.0, "vessels"): ((1650, 1932), (20, 275)),
    (3.0, "bone"): ((478, 570), (1, 20)),
}
WATER = {"white matter": (0.685, 0.716), "grey matter": (0.80, 0.85), "muscle": (0.70, 0.79)}


@pytest.mark.parametrize(("field_t", "name"), REPORTED)
def test_relaxation_times_lie_between_those_that_the_sources_report(field_t, name):
    _, t1_ms, t2_ms, _ = VALUES[field_t][name]
    (t1_low, t1_high), (t2_low, t2_high) = REPORTED[field_t, name]
    assert t1_low <= t1_ms <= t1_high
    assert t2_low <= t2_ms <= t2_high


@pytest.mark.parametrize("name", WATER)
def test_proton_density_of_tissues_without_fat_is_their_water_content(name):
    for field_t in FIELDS_T:
        assert WATER[name][0] <= VALUES[field_t][name][0] <= WATER[name][1]


@pytest.mark.parametrize("field_t", FIELDS_T)
@pytest.mark.parametrize("name", ["white matter", "grey matter"])
def test_drawn_subjects_span_what_the_sources_report_of_the_brain(field_t, name):
    number = NAMES.index(name)
    drawn = [draw_values(np.random.default_rng(seed), field_t) for seed in range(2000)]
    for column, (low, high) in zip(("t1_ms", "t2_ms"), REPORTED[field_t, name], strict=True):
        values = [getattr(values, column)[number] for values in drawn]
        assert min(values) <= low
        assert max(values) >= high


@pytest.mark.parametrize("field_t", FIELDS_T)
def test_lesions_lie_between_white_matter_and_fluid(field_t):
    white, fluid = NAMES.index("white matter"), NAMES.index("cerebrospinal fluid")
    drawn = [draw_values(np.random.default_rng(seed), field_t) for seed in range(500)]
    for values in [typical_values(field_t), *drawn]:
        assert (values.proton_density[LESION:] < 1).all()
        for column in (values.proton_density, values.t1_ms, values.t2_ms):
            assert (column[LESION:] > column[white]).all()
        for column in (values.t1_ms, values.t2_ms):
            assert (column[LESION:] < column[fluid]).all()
