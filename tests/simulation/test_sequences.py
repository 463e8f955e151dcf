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


class Spins:
    """Spins across a voxel at different frequencies, followed by the Bloch equations from pulse to pulse."""

    def __init__(self, t1_ms, t2_ms):
        self.t1_ms, self.t2_ms = t1_ms, t2_ms
        self.magnetization = np.tile([0.0, 0.0, 1.0], (64, 1))
        self.turns_per_ms = np.linspace(-0.1, 0.1, 64)

    def pulse(self, angle_deg, axis):
        cosine, sine = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
        one, other = {"x": (1, 2), "y": (2, 0)}[axis]
        turned = self.magnetization.copy()
        turned[:, one] = cosine * self.magnetization[:, one] - sine * self.magnetization[:, other]
        turned[:, other] = sine * self.magnetization[:, one] + cosine * self.magnetization[:, other]
        self.magnetization = turned

    def wait(self, ms):
        x, y, z = self.magnetization.T
        across = (x + 1j * y) * np.exp(2j * np.pi * self.turns_per_ms * ms - ms / self.t2_ms)
        self.magnetization = np.stack([across.real, across.imag, 1 - (1 - z) * math.exp(-ms / self.t1_ms)], 1)

    def spoil(self):
        self.magnetization[:, :2] = 0

    def read(self):
        return abs(np.mean(self.magnetization[:, 0] + 1j * self.magnetization[:, 1]))

    def echoes(self, times_ms):
        """Refocus so that there are echoes at these times after the excitation, and return their signals."""
        signals, now_ms = [], 0.0
        for time_ms in times_ms:
            self.wait((time_ms - now_ms) / 2)
            self.pulse(180, "y")
            self.wait((time_ms - now_ms) / 2)
            signals.append(self.read())
            now_ms = time_ms
        self.spoil()
        return signals


TISSUES_MS = [(300.0, 80.0), (650.0, 76.0), (1080.0, 95.0), (1900.0, 110.0), (4250.0, 800.0)]


@pytest.mark.parametrize(("t1_ms", "t2_ms"), TISSUES_MS)
@pytest.mark.parametrize(("tr_ms", "te_ms"), [(500.0, 12.0), (2000.0, 90.0), (6000.0, 30.0)])
def test_a_spin_echo_is_what_the_bloch_equations_give(t1_ms, t2_ms, tr_ms, te_ms):
    spins = Spins(t1_ms, t2_ms)
    for _ in range(4):
        spins.pulse(90, "x")
        [seen] = spins.echoes([te_ms])
        spins.wait(tr_ms - te_ms)
    assert SingleEcho(tr_ms, te_ms).signal(tissue(1.0, t1_ms, t2_ms))[0] == pytest.approx(seen, rel=1e-4)


@pytest.mark.parametrize(("t1_ms", "t2_ms"), TISSUES_MS)
def test_two_echoes_of_one_excitation_are_those_of_two_but_for_a_few_percent_of_the_first(t1_ms, t2_ms):
    spins = Spins(t1_ms, t2_ms)
    for _ in range(4):
        spins.pulse(90, "x")
        first, second = spins.echoes([8.0, 125.0])
        spins.wait(2000 - 125.0)
    alone = [SingleEcho(2000.0, te_ms).signal(tissue(1.0, t1_ms, t2_ms))[0] for te_ms in (8.0, 125.0)]
    assert 0 <= alone[0] / first - 1 < (0.05 if t1_ms > 4000 else 0.036)
    assert alone[1] == pytest.approx(second, rel=1e-3)


@pytest.mark.parametrize(("t1_ms", "t2_ms"), TISSUES_MS)
@pytest.mark.parametrize("ti_ms", [None, 1800.0, 2400.0])
def test_a_train_of_echoes_with_and_without_inversion_is_what_the_bloch_equations_give(t1_ms, t2_ms, ti_ms):
    tr_ms, train_ms = 5000.0, 192.0
    spins = Spins(t1_ms, t2_ms)
    for _ in range(6):
        if ti_ms is not None:
            spins.pulse(180, "x")
            spins.wait(ti_ms)
            spins.spoil()
        spins.pulse(90, "x")
        seen = spins.echoes(np.linspace(12, train_ms, 16))[7]
        spins.wait(tr_ms - train_ms - (ti_ms or 0))
    fast = FastSpinEcho(tr_ms, 96.0, train_ms) if ti_ms is None else Flair(tr_ms, 96.0, ti_ms, train_ms)
    assert fast.signal(tissue(1.0, t1_ms, t2_ms))[0] == pytest.approx(seen, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(("t1_ms", "t2_ms"), TISSUES_MS)
@pytest.mark.parametrize(("tr_ms", "te_ms", "flip_deg"), [(8.0, 3.0, 18.0), (25.0, 5.0, 30.0)])
def test_a_spoiled_gradient_echo_is_what_the_bloch_equations_give(t1_ms, t2_ms, tr_ms, te_ms, flip_deg):
    spins = Spins(t1_ms, t2_ms)
    spins.turns_per_ms = np.zeros(64)  # a gradient echo refocuses what the gradients dephased, and has no other
    for _ in range(round(8 * 4250 / tr_ms)):
        spins.pulse(flip_deg, "x")
        spins.wait(te_ms)
        seen = spins.read()
        spins.spoil()
        spins.wait(tr_ms - te_ms)
    sequence = SpoiledGradientEcho(tr_ms, te_ms, flip_deg)
    assert sequence.signal(tissue(1.0, t1_ms, t2_ms))[0] == pytest.approx(seen, rel=1e-4)


def test_a_spin_echo_recovers_decays_and_is_refocused():
    # exp(-1.975) = 0.138761, exp(-2) = 0.135335: recovery 0.857813; exp(-1) = 0.367879; 0.8 of that product is 0.252459
    assert SingleEcho(2000.0, 50.0).signal(tissue())[0] == pytest.approx(0.252459, abs=1e-5)
    # an endless repetition leaves the decay alone
    assert SingleEcho(1e9, 50.0).signal(tissue())[0] == pytest.approx(0.8 * math.exp(-1))


def test_a_fast_spin_echo_recovers_after_its_train_and_loses_bound_protons():
    # TR - train = 1000 ms: recovery 1 - exp(-1) = 0.632121; decay 0.367879; half of a bound fifth is lost: 0.9
    sequence = FastSpinEcho(1200.0, 50.0, 200.0, saturation=0.5)
    assert sequence.signal(tissue(bound=0.2))[0] == pytest.approx(0.8 * 0.632121 * 0.367879 * 0.9, abs=1e-5)


def test_a_flair_has_no_signal_of_the_fluid_it_nulls_and_slower_fluid_is_still_inverted():
    for tr_ms, train_ms in ((5000.0, 150.0), (11000.0, 300.0)):
        ti_ms = fluid_null_ms(tr_ms, train_ms, 4000.0)
        flair = Flair(tr_ms, 100.0, ti_ms, train_ms)
        assert flair.signal(tissue(1.0, 4000.0, 1000.0))[0] == pytest.approx(0, abs=1e-9)
        assert flair.signal(tissue(1.0, 8000.0, 1000.0))[0] < -0.05
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
                seen = math.sin(angle) * z
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
            contrast: dict(zip(names, np.abs(TARGETS[contrast].signal(values)).tolist(), strict=True))
            for contrast in CONTRASTS
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


@pytest.mark.parametrize(
    ("name", "contrast", "kind", "values"),
    [
        ("IXI, PD", "PD", FastSpinEcho, {"tr_ms": 8178, "te_ms": 8}),
        ("IXI, T2", "T2", FastSpinEcho, {"tr_ms": 5725, "te_ms": 100}),
        ("ADNI, PD", "PD", FastSpinEcho, {"tr_ms": 3000, "te_ms": 12}),
        ("ADNI, T2", "T2", FastSpinEcho, {"tr_ms": 3000, "te_ms": 100}),
        ("ADNI, T1", "T1", Mprage, {"tr_ms": 2300, "ti_ms": 900, "flip_deg": 9}),
        ("UK Biobank, T1", "T1", Mprage, {"tr_ms": 2000, "ti_ms": 880, "flip_deg": 8}),
        ("HCP, T1", "T1", Mprage, {"tr_ms": 2400, "ti_ms": 1000, "flip_deg": 8}),
        ("a clinical T1 FLAIR", "T1", Flair, {"tr_ms": 2000, "ti_ms": 800}),
        ("ADNI, FLAIR", "FLAIR", Flair, {"tr_ms": 9000, "ti_ms": 2500}),
        ("UK Biobank, FLAIR", "FLAIR", Flair, {"tr_ms": 5000, "ti_ms": 1800}),
    ],
)
def test_protocols_of_public_datasets_lie_among_the_drawn_ones(name, contrast, kind, values):
    drawn = [draw_protocols(np.random.default_rng(seed), CONTRASTS)[contrast] for seed in range(3000)]
    deviations = [
        max(abs(getattr(protocol, key) / value - 1) for key, value in values.items())
        for protocol in drawn
        if type(protocol) is kind
    ]
    assert min(deviations) < 0.1, name


def test_fluid_has_next_to_no_signal_in_one_t1w_image_of_seven():
    white, fluid = NAMES.index("white matter"), NAMES.index("cerebrospinal fluid")
    darkest = []
    for seed in range(2000):
        rng = np.random.default_rng(seed)
        signal = np.abs(draw_protocols(rng, ("T1",))["T1"].signal(draw_values(rng, float(rng.choice(FIELDS_T)))))
        darkest.append(signal[fluid] / signal[white])
    assert np.mean(np.array(darkest) < 0.06) > 1 / 7
    assert np.median(darkest) == pytest.approx(0.24, abs=0.02)


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
