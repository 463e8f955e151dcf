"""The discriminators: the specified network, and logits that depend on both images."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unscanned.errors import SettingsError
from unscanned.models.base import check_edge
from unscanned.models.discriminators import build
from unscanned.models.nie_discriminator import NieDiscriminator


def test_the_parameter_count_is_that_of_the_specification() -> None:
    assert sum(parameter.numel() for parameter in NieDiscriminator().parameters()) == 9_618_785


def test_the_layers_are_those_of_the_specification_in_its_order() -> None:
    layers = [layer for layer in NieDiscriminator().modules() if not list(layer.children())]
    stage = ["Conv3d", "BatchNorm3d", "LeakyReLU", "MaxPool3d"]
    head = ["Flatten", "Linear", "LeakyReLU", "Linear", "LeakyReLU", "Linear"]
    assert [type(layer).__name__ for layer in layers] == 3 * stage + ["Conv3d", *head]
    widths = [(layer.in_channels, layer.out_channels, layer.kernel_size) for layer in layers if is_convolution(layer)]
    cube = (3, 3, 3)
    assert widths == [(2, 32, cube), (32, 64, cube), (64, 128, cube), (128, 256, cube)]
    assert [layer.out_features for layer in layers if isinstance(layer, nn.Linear)] == [512, 128, 1]


def is_convolution(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv3d)


@pytest.mark.parametrize("patch", [8, 16])
def test_it_gives_one_logit_for_each_pair(patch: int) -> None:
    images = torch.randn(3, 1, patch, patch, patch)
    assert build("small", patch=patch)(images, images).shape == (3, 1)


def test_logits_depend_on_source_and_target_and_on_their_order() -> None:
    torch.manual_seed(0)
    discriminator = build("small", patch=8).eval()
    a, b = torch.randn(2, 1, 1, 8, 8, 8)
    logits = [discriminator(*pair).item() for pair in ((a, b), (b, a), (a, a), (b, b))]
    assert len(set(logits)) == 4


def test_weights_begin_uniform_within_the_bounds_of_xavier_and_biases_at_0() -> None:
    layers = [layer for layer in build("small", patch=16).modules() if isinstance(layer, (nn.Conv3d, nn.Linear))]
    assert len(layers) == 7
    for layer in layers:
        outputs, inputs, *kernel = layer.weight.shape
        bound = (6 / ((inputs + outputs) * torch.Size(kernel).numel())) ** 0.5
        assert 0.9 * bound < layer.weight.abs().max() <= bound
        assert not layer.bias.any()


def test_negative_values_between_layers_shrink_to_a_fifth() -> None:
    discriminator = build("small", patch=8)
    given, made = [], []
    for layer in discriminator.modules():
        if isinstance(layer, nn.LeakyReLU):  # works in place
            layer.register_forward_pre_hook(lambda layer, inputs: given.append(inputs[0].detach().clone()))
            layer.register_forward_hook(lambda layer, inputs, output: made.append(output.detach()))
    with torch.no_grad():
        discriminator(*torch.randn(2, 2, 1, 8, 8, 8))
    assert len(given) == 5
    for before, after in zip(given, made, strict=True):
        assert (before < 0).any()
        assert torch.equal(after, torch.where(before < 0, 0.2 * before, before))


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SettingsError, match="nie"):
        build("patchgan")


def test_options_of_its_own_make_another_network() -> None:
    discriminator = build("small", patch=8, options={"filters": [2, 3, 4, 5]})
    assert [layer.out_channels for layer in discriminator.modules() if is_convolution(layer)] == [2, 3, 4, 5]
    with pytest.raises(SettingsError, match=r"discriminator\.options: filters: .*expected 4 times integer"):
        build("small", options={"filters": [2, 3]})


def layers_with_weights(network: nn.Module) -> list[nn.Module]:
    return [layer for layer in network.modules() if isinstance(layer, (nn.Conv3d, nn.Linear))]


@pytest.mark.parametrize("name", ["nie", "small"])
def test_with_spectral_norm_every_weight_has_a_largest_singular_value_of_1_and_there_is_no_batch_norm(name) -> None:
    discriminator = build(name, patch=16, spectral_norm=True)
    images = torch.randn(2, 1, 16, 16, 16)
    with torch.no_grad():
        for layer in layers_with_weights(discriminator):
            layer.parametrizations.weight.original.mul_(3)
        for _ in range(30):
            logits = discriminator(images, images)
    assert logits.shape == (2, 1)
    assert not any(isinstance(layer, nn.BatchNorm3d) for layer in discriminator.modules())
    for layer in layers_with_weights(discriminator):
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.05)


def test_spectral_norm_begins_with_the_same_weights_and_without_it_nothing_changes() -> None:
    built = []
    for spectral_norm in (False, True):
        torch.manual_seed(0)
        built.append(build("small", patch=16, spectral_norm=spectral_norm))
    plain, normalized = built
    assert not any("parametrizations" in name for name in plain.state_dict())
    for one, other in zip(*map(layers_with_weights, built), strict=True):
        assert torch.equal(one.weight, other.parametrizations.weight.original)
    assert sum(name.endswith(("_u", "_v")) for name in normalized.state_dict()) == 2 * 7


def test_the_power_method_moves_in_training_mode_alone() -> None:
    discriminator = build("small", patch=8, spectral_norm=True)
    images = torch.randn(2, 1, 8, 8, 8)
    for is_training in (False, True):
        before = {name: vector.clone() for name, vector in discriminator.named_buffers()}
        discriminator.train(is_training)(images, images)
        moved = [not torch.equal(before[name], vector) for name, vector in discriminator.named_buffers()]
        assert any(moved) == is_training


def test_a_patch_that_it_does_not_halve_three_times_is_refused() -> None:
    discriminator = build("nie", patch=16)
    check_edge(discriminator, noun="discriminator", name="nie", patch=16)
    with pytest.raises(SettingsError, match=r"training\.patch: the discriminator halves .*found 12 .* multiple of 8"):
        check_edge(discriminator, noun="discriminator", name="nie", patch=12)
