"""The generators: the specified networks, and one function however it is computed."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from unscanned.errors import SettingsError
from unscanned.models import nie
from unscanned.models.base import GeneratorBase
from unscanned.models.folding import fold, polyphase, spectra_bytes, unfold
from unscanned.models.generators import GENERATORS, FastGenerator, build, check_patch
from unscanned.models.initialization import initialize
from unscanned.models.nie import NieGenerator
from unscanned.models.wrappers import Residual, inner
from unscanned.synthesis.whole_volume import map_volume

NARROW = (3, 4, 3, 4, 5, 4, 3, 4)


def begun(generator: NieGenerator) -> NieGenerator:
    """Fill the weights as the reference presets do."""
    initialize(generator, "xavier_uniform", where="test")
    return generator


def narrow(convolution: str, *, in_channels: int = 1, dtype: torch.dtype = torch.float64) -> NieGenerator:
    """Return the nine layers with few filters and with norms that are not the identity."""
    torch.manual_seed(0)
    generator = begun(NieGenerator(in_channels, filters=NARROW)).to(dtype)
    for norm in generator.norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
    generator.convolution = convolution
    return generator


def relative(a: Tensor, b: Tensor) -> float:
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(("output", "change"), [("tanh", torch.tanh), ("batch_norm", lambda y: 2 * y + 1)])
@pytest.mark.parametrize("residual", [False, True])
def test_what_follows_the_last_convolution_comes_before_the_source_on_every_path(output, change, residual) -> None:
    torch.manual_seed(0)
    plain = build("nie", convolution="plain").eval()
    generator = build("nie", residual=residual, output=output, convolution="spectral").eval()
    inner(generator).load_state_dict(plain.state_dict())
    for norm in (
        layer for layer in generator.modules() if isinstance(layer, nn.BatchNorm3d) and layer.num_features == 1
    ):
        nn.init.constant_(norm.weight, 2 * (1 + norm.eps) ** 0.5)
        nn.init.constant_(norm.bias, 1)
    x = torch.randn(2, 1, 16, 16, 16)
    with torch.inference_mode():
        expected = change(plain(x)) + (x if residual else 0)
        assert relative(generator(x), expected) < 1e-5
        assert relative(FastGenerator(generator)(x), expected) < 1e-5
        whole = map_volume(x[0].numpy(), generator)
    assert relative(torch.from_numpy(whole), expected[0, 0]) < 1e-5


def test_an_output_that_is_not_known_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SettingsError, match="tanh"):
        build("small", output="softmax")


def test_the_layers_are_those_of_the_specification_in_its_order() -> None:
    generator = NieGenerator()
    layers = [(c.kernel_size, c.dilation, c.padding, c.out_channels) for c in generator.convolutions]
    cubes = zip(
        (9, 3, 3, 3, 9, 3, 3, 7, 3),
        (1, 2, 2, 2, 2, 2, 2, 2, 1),
        (4, 2, 2, 2, 8, 2, 2, 6, 1),
        (32, 32, 32, 64, 64, 64, 32, 32, 1),
        strict=True,
    )
    assert layers == [((kernel,) * 3, (step,) * 3, (margin,) * 3, out) for kernel, step, margin, out in cubes]
    assert [norm.num_features for norm in generator.norms] == [32, 32, 32, 64, 64, 64, 32, 32]


@pytest.mark.parametrize("name", GENERATORS)
def test_no_generator_has_a_layer_without_a_deterministic_gradient_on_cuda(name: str) -> None:
    if name == "unet":
        pytest.importorskip("monai")
    forbidden = (nn.AvgPool3d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d, nn.Upsample, nn.ReflectionPad3d)
    assert not [layer for layer in build(name).modules() if isinstance(layer, forbidden)]


def test_the_parameter_counts_are_those_of_the_specification() -> None:
    assert parameters(build("nie")) == 3_638_945
    assert parameters(build("nie", in_channels=2)) == 3_662_273


@pytest.mark.parametrize(
    ("generator", "context"), [(NieGenerator(filters=(1,) * 8), 29), (build("small"), 7)], ids=["nie", "small"]
)
def test_an_output_voxel_sees_exactly_59_voxels_a_side_and_15_in_the_small_one(
    generator: NieGenerator, context: int
) -> None:
    generator = generator.double().eval()
    for convolution in generator.convolutions:
        nn.init.constant_(convolution.weight, 1.0)
    x = torch.zeros(1, 1, 61, 3, 3, dtype=torch.float64)
    centre = 30
    calm = generator(x)[0, 0, centre, 1, 1]
    for distance, seen in ((context, True), (context + 1, False)):
        for voxel in (centre - distance, centre + distance):
            disturbed = x.clone()
            disturbed[0, 0, voxel, 1, 1] = 1.0
            assert bool(generator(disturbed)[0, 0, centre, 1, 1] != calm) == seen
    assert generator.reach == context


def test_weights_begin_uniform_within_the_bounds_of_xavier_and_biases_at_0() -> None:
    for convolution in inner(build("small")).convolutions:
        taps = convolution.kernel_size[0] ** 3
        bound = (6 / (taps * (convolution.in_channels + convolution.out_channels))) ** 0.5
        assert 0.9 * bound < convolution.weight.abs().max() <= bound
        assert convolution.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
        assert not convolution.bias.any()


def test_negative_values_between_layers_shrink_to_a_fifth() -> None:
    generator = begun(NieGenerator(filters=(1,), kernels=(1, 1))).eval()
    for convolution in generator.convolutions:
        nn.init.ones_(convolution.weight)
    x = torch.tensor([-3.0, -1.0, 0.0, 2.0]).reshape(1, 1, 4, 1, 1)
    expected = torch.tensor([-0.6, -0.2, 0.0, 2.0]).reshape(1, 1, 4, 1, 1)
    assert torch.allclose(generator(x), expected, rtol=1e-4)


def test_the_last_layer_is_linear_and_has_no_norm() -> None:
    generator = begun(NieGenerator(filters=(4,) * 8))
    x = torch.randn(2, 1, 8, 8, 8)
    before = generator(x)
    nn.init.normal_(generator.convolutions[-1].bias)
    shift = generator.convolutions[-1].bias.detach()
    assert torch.allclose(generator(x), before + shift, atol=1e-5)
    with torch.no_grad():
        generator.convolutions[-1].weight.mul_(-30.0)
    assert torch.allclose(generator(x), -30.0 * before + shift, atol=1e-3)


@pytest.mark.parametrize("shape", [(8, 8, 8), (2, 6, 4), (10, 4, 12)])
@pytest.mark.parametrize("in_channels", [1, 2])
def test_the_frequency_domain_equals_conv3d_in_training(shape: tuple[int, int, int], in_channels: int) -> None:
    x = torch.randn(3, in_channels, *shape, dtype=torch.float64)
    cotangent = torch.randn(3, 1, *shape, dtype=torch.float64)
    results = []
    for convolution in ("plain", "spectral"):
        generator, source = narrow(convolution, in_channels=in_channels), x.clone().requires_grad_()
        y = generator(source)
        y.backward(cotangent)
        results.append((generator, source, y))
    (plain, plain_source, plain_y), (spectral, spectral_source, spectral_y) = results
    assert relative(spectral_y, plain_y) < 1e-12
    assert relative(spectral_source.grad, plain_source.grad) < 1e-10
    for (name, a), b in zip(spectral.named_parameters(), plain.parameters(), strict=True):
        if name.startswith("convolutions") and name.endswith("bias") and not name.startswith("convolutions.8"):
            assert a.grad.abs().max() < 1e-10, "a bias before batch norm has no effect"
        else:
            assert relative(a.grad, b.grad) < 1e-10, name
    for a, b in zip(spectral.buffers(), plain.buffers(), strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("residual", [False, True])
def test_evaluation_equals_conv3d_with_and_without_preparation(residual: bool) -> None:
    x = torch.randn(2, 2, 6, 8, 10, dtype=torch.float64)
    networks = [narrow(convolution, in_channels=2).eval() for convolution in ("plain", "spectral")]
    if residual:
        networks = [Residual(network) for network in networks]
    plain, spectral = networks
    expected = plain(x)
    assert relative(spectral(x), expected) < 1e-12
    fast = FastGenerator(spectral)
    assert relative(fast(x), expected) < 1e-12
    assert relative(fast(x[:, :, :4]), plain(x[:, :, :4])) < 1e-12


def test_float32_output_of_the_full_generator_is_as_good_as_that_of_conv3d() -> None:
    torch.manual_seed(1)
    generator, x = NieGenerator().eval(), torch.randn(1, 1, 16, 16, 16)
    generator.convolution = "plain"
    with torch.no_grad():
        plain, truth = generator(x), copy.deepcopy(generator).double()(x.double())
    generator.convolution = "auto"
    error = relative(FastGenerator(generator)(x), truth)
    assert error < max(3 * relative(plain, truth), 1e-6)
    assert error < 3e-6


def test_float32_gradients_are_as_good_as_those_of_conv3d() -> None:
    torch.manual_seed(2)
    filters = (8, 8, 8, 16, 16, 16, 8, 8)
    slope = (
        1.0  # at a kink one value whose sign rounding decides would outweigh all rounding, in either way to convolve
    )
    x, cotangent = torch.randn(2, 1, 16, 16, 16), torch.randn(2, 1, 16, 16, 16)
    start = NieGenerator(filters=filters, slope=slope).state_dict()
    gradients = []
    for convolution, dtype in (("plain", torch.float64), ("plain", torch.float32), ("auto", torch.float32)):
        generator = NieGenerator(filters=filters, slope=slope).to(dtype)
        generator.load_state_dict(start)
        generator.convolution = convolution
        generator(x.to(dtype)).backward(cotangent.to(dtype))
        gradients.append({name: p.grad for name, p in generator.named_parameters() if "bias" not in name})
    truth, plain, spectral = gradients
    for name in truth:
        assert relative(spectral[name], truth[name]) < max(3 * relative(plain[name], truth[name]), 3e-7), name


def test_every_way_to_convolve_has_the_same_state() -> None:
    states = [narrow(convolution).state_dict() for convolution in ("plain", "spectral", "auto")]
    for state in states[1:]:
        assert list(state) == list(states[0])
        assert all(torch.equal(state[name], states[0][name]) for name in state)


def test_odd_sizes_and_other_types_take_the_plain_way_exactly() -> None:
    generator = narrow("spectral", dtype=torch.float32).eval()
    plain = copy.deepcopy(generator)
    plain.convolution = "plain"
    x = torch.randn(1, 1, 7, 8, 8)
    assert not generator.takes_spectral(x)
    assert torch.equal(generator(x), plain(x))
    assert torch.equal(FastGenerator(generator)(x), plain(x))
    assert not generator.takes_spectral(x[:, :, :6].bfloat16())
    assert generator.takes_spectral(x[:, :, :6])


def test_auto_takes_the_frequency_domain_for_large_kernels_on_large_patches_only() -> None:
    full, small = build("nie"), build("small")
    assert full.takes_spectral(torch.zeros(1, 1, 32, 32, 32))
    assert not full.takes_spectral(torch.zeros(1, 1, 8, 8, 8))
    assert not small.takes_spectral(torch.zeros(1, 1, 32, 32, 32))


def test_auto_takes_the_plain_way_where_the_spectra_would_take_too_much_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = NieGenerator(filters=(2, 2, 3), kernels=(5, 3, 7, 3)).eval()
    x = torch.randn(1, 1, 16, 16, 16)
    prepared = generator.fast()
    prepared(x)
    (layers,) = prepared.layers.values()
    needed = sum(kernel.spectrum.nbytes for kernel in layers.kernels)
    assert spectra_bytes(generator.layers[0], x.shape[2:]) == needed
    for memory, is_taken in ((3 * needed, True), (3 * needed - 3, False), (None, True)):
        monkeypatch.setattr(nie, "machine_bytes", lambda memory=memory: memory)
        assert generator.takes_spectral(x) == is_taken
    generator.convolution = "spectral"
    monkeypatch.setattr(nie, "machine_bytes", lambda: 0)
    assert generator.takes_spectral(x)


def test_changed_weights_need_a_new_preparation_and_get_it() -> None:
    generator = narrow("spectral").eval()
    x = torch.randn(1, 1, 4, 4, 4, dtype=torch.float64)
    before = FastGenerator(generator)(x)
    with torch.no_grad():
        generator.convolutions[4].weight.mul_(2.0)
    after = FastGenerator(generator)(x)
    assert relative(after, before) > 1e-3
    assert relative(after, generator(x)) < 1e-12


def test_folding_and_unfolding_is_the_identity() -> None:
    x = torch.randn(2, 3, 4, 6, 8)
    folded = fold(x)
    assert folded.shape == (2, 3, 4, 24, 2)
    assert torch.equal(unfold(folded), x)


@pytest.mark.parametrize("kernel", [1, 3, 5, 9])
def test_a_polyphase_kernel_has_every_tap_once_for_each_output_parity(kernel: int) -> None:
    weight = torch.randn(2, 3, kernel, kernel, kernel)
    phases = polyphase(weight).view(2, 8, 3, -1)
    for parity in range(8):
        kept = phases[:, parity].flatten(2)
        assert torch.allclose(kept.sum(2), weight.flatten(2).sum(2), atol=1e-4)
        assert torch.equal(kept[kept != 0].sort().values, weight.flatten().sort().values)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"name": "ni"}, "nie"),
        ({"name": "nie", "convolution": "fft"}, "spectral"),
        ({"name": "unet", "convolution": "spectral"}, "no pass through .*expected auto or plain"),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(arguments: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        build(**arguments)


def test_options_of_its_own_make_another_network() -> None:
    options = {"filters": [4, 4], "kernels": [3, 5, 3]}
    generator = build("nie", options=options)
    assert [c.kernel_size[0] for c in generator.convolutions] == [3, 5, 3]
    assert [c.out_channels for c in generator.convolutions] == [4, 4, 1]
    assert generator.reach == 1 + 4 + 1


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("nie", {"filtres": [4]}, r"generator\.options: filtres: unknown option; .*Did you mean filters\?"),
        ("small", {"filters": [8, 0, 8]}, r"generator\.options: filters: must be positive; found 0"),
        ("small", {"filters": "wide"}, r"filters: .*found 'wide', expected list of integer"),
        ("nie", {"kernels": [3, 4, 3], "filters": [4, 4]}, "kernels must be odd, and one more than filters"),
        ("nie", {"kernels": [3, 3]}, "kernels must be odd, and one more than filters"),
        ("unet", {"width": 3}, r"generator\.options: this architecture has no options of its own; found width"),
    ],
)
def test_options_that_a_generator_does_not_have_or_take_are_refused(name, options, reason) -> None:
    with pytest.raises(SettingsError, match=reason):
        build(name, options=options)


class Doubling(GeneratorBase):
    """The least that a generator needs."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x[:, :1]


def test_a_generator_that_declares_nothing_is_built_mapped_and_refused_as_such(monkeypatch) -> None:
    monkeypatch.setitem(GENERATORS, "doubling", Doubling)
    generator, x = build("doubling", residual=True), torch.randn(2, 1, 5, 5, 5)
    assert torch.equal(FastGenerator(generator)(x), 3 * x)
    check_patch(generator, name="doubling", patch=5, margin=1)
    with pytest.raises(SettingsError, match="found volume with Doubling, expected patches"):
        map_volume(x[0].numpy(), generator)
    with pytest.raises(SettingsError, match="expected auto or plain"):
        build("doubling", convolution="spectral")


def test_a_generator_with_a_reach_alone_maps_whole_volumes(monkeypatch) -> None:
    monkeypatch.setattr(Doubling, "reach", 0)
    generator = Doubling()
    generator.layer = nn.Conv3d(1, 1, 1)  # memory is planned by convolutions
    x = np.ones((1, 5, 6, 7), np.float32)
    assert np.array_equal(map_volume(x, generator), 2 * x[0])
