"""The signal equations against numbers worked out by hand and against Bloch simulations, and the drawn protocols."""

import math

import numpy as np
import pytest

from unscanned.simulation.relaxation import FIELDS_T, LESION, NAMES, Parameters, draw_values
from unscanned.simulation.sequences import (
    CONTRASTS,
    TARGETS,
    FastSpinEcho,
    Flair,
    Mprage,
    SingleEcho,
    SpoiledGradientEcho,
    draw_protocols,
    fluid_null_ms,
)


def tissue(density=0.8, t1_ms=1000.0, t2_ms=50.0, bound=0.0) -> Parameters:
    return Parameters(*(np.array([value]) for value in (density, t1_ms, t2_ms, bound)))


def test_a_spin_echo_recovers_decays_and_is_refocused():
    # exp(-1.975) = 0.138761, exp(-2) = 0.135335: recovery 0.857813; exp(-1) = 0.367879; 0.8 of that product is 0.252459
    assert SingleEcho(2000.0, 50.0).signal(tissue())[0] == pytest.approx(0.252459, abs=1e-5)
    # an endless repetition leaves the decay alone
    assert SingleEcho(1e9, 50.0).signal(tissue())[0] == pytest.approx(0.8 * math.exp(-1))


def test_a_fast_spin_echo_recovers_after_its_train_and_loses_bound_protons():
    # TR - train = 1000 ms: recovery 1 - exp(-1) = 0.632121; decay 0.367879; half of a bound fifth is lost: 0.9
    sequence = FastSpinEcho(1200.0, 50.0, 200.0, saturation=0.5)
    assert sequence.signal(tissue(bound=0.2))[0] == pytest.approx(0.8 * 0.632121 * 0.367879 * 0.9, abs=1e-5)


def test_a_flair_has_no_signal_of_the_fluid_it_nulls_and_stores_magnitudes():
    for tr_ms, train_ms in ((5000.0, 150.0), (11000.0, 300.0)):
        ti_ms = fluid_null_ms(tr_ms, train_ms, 4000.0)
        flair = Flair(tr_ms, 100.0, ti_ms, train_ms)
        assert flair.signal(tissue(1.0, 4000.0, 1000.0))[0] == pytest.approx(0, abs=1e-9)
        assert flair.signal(tissue(1.0, 8000.0, 1000.0))[0] > 0.05
    # for an endless TR the null is at T1 ln 2
    assert fluid_null_ms(1e9, 0.0, 4000.0) == pytest.approx(4000 * math.log(2))


def test_a_spoiled_gradient_echo_is_brightest_at_the_ernst_angle():
    at = {flip: SpoiledGradientEcho(20.0, 0.0, flip).signal(tissue())[0] for flip in np.arange(2.0, 60.0, 0.5)}
    ernst = math.degrees(math.acos(math.exp(-20 / 1000)))
    assert max(at, key=at.__getitem__) == pytest.approx(ernst, abs=0.5)
    # at 90 degrees nothing is left of the last excitation: 1 - exp(-TR / T1)
    assert SpoiledGradientEcho(20.0, 0.0, 90.0).signal(tissue())[0] == pytest.approx(0.8 * (1 - math.exp(-0.02)))


@pytest.mark.parametrize("t1_ms", [300.0, 930.0, 1480.0, 4300.0])
@pytest.mark.parametrize(("centre", "first"), [(0.5, 88), (0.0, 0)])
def test_an_mprage_is_what_following_the_magnetization_pulse_by_pulse_gives(t1_ms, centre, first):
    mprage = Mprage(2300.0, 900.0, 3.0, 9.0, 7.0, 177, efficiency=0.95, centre=centre)
    angle = math.radians(9.0)
    wait_ms = 900 - first * 7.0
    z, seen = 1.0, 0.0

    def relax(z, ms):
        return 1 - (1 - z) * math.exp(-ms / t1_ms)

    for _ in range(60):
        z = relax(-0.95 * z, wait_ms)
        for echo in range(177):
            if echo == first:
                seen = math.sin(angle) * abs(z)
            z = relax(z * math.cos(angle), 7.0)
        z = relax(z, 2300 - wait_ms - 177 * 7.0)
    expected = 0.8 * seen * math.exp(-3 / 50)
    assert mprage.signal(tissue(t1_ms=t1_ms))[0] == pytest.approx(expected, rel=1e-9)


def test_the_fixed_sequences_order_the_tissues_as_radiology_does():
    names = {name: number for number, name in enumerate(NAMES)}
    for seed in range(40):
        rng = np.random.default_rng(seed)
        values = draw_values(rng, FIELDS_T[seed % 2])
        signal = {
            contrast: dict(zip(names, TARGETS[contrast].signal(values).tolist(), strict=True)) for contrast in CONTRASTS
        }
        fluid, lesion = "cerebrospinal fluid", "lesion 3"
        for contrast in ("PD", "T2", "FLAIR"):
            assert signal[contrast]["white matter"] < signal[contrast][lesion]
        assert signal["T2"]["white matter"] < signal["T2"]["grey matter"] < signal["T2"][fluid]
        assert signal["T1"][fluid] < signal["T1"]["grey matter"] < signal["T1"]["white matter"]
        assert signal["T1"][lesion] < signal["T1"]["white matter"]
        assert signal["FLAIR"][fluid] < 0.5 * signal["FLAIR"]["white matter"]


def test_t1_is_longer_at_3_tesla_in_every_tissue_but_free_fluid_and_lesions_grow_with_their_level():
    low, high = (draw_values(np.random.default_rng(1), field) for field in FIELDS_T)
    solid = [n for n, name in enumerate(NAMES) if name not in ("air", "cerebrospinal fluid", "eye fluid")]
    assert (high.t1_ms[solid] > 1.1 * low.t1_ms[solid]).all()
    for column in (low.proton_density, low.t1_ms, low.t2_ms):
        assert (np.diff(column[LESION:]) > 0).all()
        assert column[LESION] > column[NAMES.index("white matter")]


def test_the_target_has_one_sequence_and_a_dual_echo_one_excitation():
    for seed in range(60):
        drawn = draw_protocols(np.random.default_rng(seed), ("PD", "T2"), "T2")
        assert drawn["T2"].te_ms == TARGETS["T2"].te_ms
        assert drawn["T2"].tr_ms == drawn["PD"].tr_ms
        assert type(drawn["T2"]) is type(drawn["PD"])
        for source, target in (("T1", "T2"), ("T2", "T1"), ("T1", "FLAIR")):
            assert draw_protocols(np.random.default_rng(seed), (source, target), target)[target] == TARGETS[target]


def test_drawn_protocols_can_be_run_and_span_the_kinds():
    kinds = set()
    for seed in range(200):
        for protocol in draw_protocols(np.random.default_rng(seed), CONTRASTS).values():
            kinds.add(type(protocol))
            if isinstance(protocol, Mprage):
                train_ms = protocol.echoes * protocol.echo_spacing_ms
                wait_ms = protocol.ti_ms - int(protocol.centre * protocol.echoes) * protocol.echo_spacing_ms
                assert wait_ms > 0
                assert protocol.tr_ms > wait_ms + train_ms
            fields = protocol.sidecar()
            assert 0 < fields["EchoTime"] < fields["RepetitionTime"] < 12
    assert kinds == {SingleEcho, FastSpinEcho, Flair, SpoiledGradientEcho, Mprage}
