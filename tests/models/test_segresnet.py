"""SegResNet: edges that its levels halve, every norm, and no grid in what it makes."""

import numpy as np
import pytest
import torch

from unscanned.errors import SettingsError
from unscanned.models.generators import build, check_patch
from unscanned.models.segresnet import Doubling
from unscanned.models.wrappers import Residual, inner
from unscanned.synthesis.whole_volume import map_volume, plan

SHALLOW = {"filters": 8, "blocks_down": [1, 1], "blocks_up": [1]}


@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
@pytest.mark.parametrize("in_channels", [1, 2])
def test_every_norm_maps_patches_of_any_edges_that_the_levels_halve(norm, in_channels):
    torch.manual_seed(0)
    generator = build("segresnet", in_channels=in_channels, options={**SHALLOW, "norm": norm})
    kind = {"batch": "BatchNorm3d", "instance": "InstanceNorm3d", "group": "GroupNorm"}[norm]
    assert any(type(module).__name__ == kind for module in generator.modules())
    x = torch.randn(2, in_channels, 12, 10, 16)
    y = generator(x)
    assert y.shape == (2, 1, 12, 10, 16)
    assert y.is_contiguous()
    y.square().mean().backward()
    assert all(parameter.grad is not None for parameter in generator.parameters())


def test_by_default_three_levels_are_halved_and_other_edges_are_refused():
    generator = build("segresnet", options={"filters": 8})
    check_patch(generator, name="segresnet", patch=24)
    with pytest.raises(SettingsError, match=r"does not take patches.*found 20 .*expected a multiple of 8"):
        check_patch(generator, name="segresnet", patch=20)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"blocks_down": [1, 1], "blocks_up": [1, 1]}, "blocks_down must be one more than blocks_up"),
        ({"filters": 12, "norm": "group"}, "multiple of 8"),
        ({"norm": "layer"}, r"generator\.options: norm"),
        ({"filter": 8}, r"Did you mean filters\?"),
    ],
)
def test_options_that_cannot_be_are_refused(options, words):
    with pytest.raises(SettingsError, match=words):
        build("segresnet", options=options)


def grid(generator):
    """How much neighbouring voxels of the middle differ where the input is constant."""
    torch.manual_seed(0)
    with torch.no_grad():
        for module in generator.modules():
            if isinstance(module, torch.nn.BatchNorm3d):
                torch.nn.init.normal_(module.running_mean)
                torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
        middle = generator.eval()(torch.ones(1, 1, 48, 48, 48))[0, 0, 20:28, 20:28, 20:28]
    return float(middle.std() / middle.abs().mean())


def test_a_constant_stays_a_constant_where_transposed_convolutions_leave_a_grid():
    torch.manual_seed(0)
    assert grid(build("segresnet", options=SHALLOW)) < 1e-5
    assert grid(build("unet")) > 1e-3


def test_doubling_is_trilinear_interpolation():
    x = torch.randn(2, 3, 4, 5, 1, dtype=torch.float64)
    expected = torch.nn.functional.interpolate(x, scale_factor=2, mode="trilinear", align_corners=False)
    assert torch.allclose(Doubling()(x), expected)


def test_it_stands_inside_a_residual_generator_as_the_others_do():
    generator = build("segresnet", residual=True, options=SHALLOW, initialization="kaiming_normal").eval()
    x = torch.randn(1, 1, 8, 8, 8)
    assert torch.allclose(generator(x), x + inner(generator)(x))


def shallow(**options):
    torch.manual_seed(0)
    generator = build("segresnet", options={**SHALLOW, **options}).eval()
    for module in generator.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            torch.nn.init.normal_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    return generator


@pytest.mark.parametrize(
    "options", [{}, {"blocks_down": [1, 1, 1], "blocks_up": [1, 1]}, {"blocks_down": [2, 1], "blocks_up": [2]}]
)
def test_no_voxel_beyond_the_reach_changes_an_output_voxel(options):
    generator = shallow(**options).double()
    n = 2 * generator.reach + 4 * generator.multiple
    x = torch.randn(1, 1, n, n, 8, dtype=torch.float64, requires_grad=True)
    places = [n // 2 + offset for offset in range(generator.multiple)]
    furthest = 0
    for i in places:
        (gradient,) = torch.autograd.grad(generator(x)[0, 0, i, n // 2, 4], x)
        seen = gradient[0, 0].abs().sum((1, 2)).nonzero().ravel()
        furthest = max(furthest, i - int(seen.min()), int(seen.max()) - i)
    assert generator.reach - 2 * generator.multiple < furthest <= generator.reach


def test_a_volume_whole_in_tiles_and_under_a_memory_cap_is_the_same():
    generator = Residual(shallow())
    volume = np.random.default_rng(0).standard_normal((1, 61, 40, 37)).astype(np.float32)
    padded = np.pad(volume, [(0, 0), (0, 1), (0, 0), (0, 1)], mode="edge")
    with torch.inference_mode():
        whole = generator(torch.from_numpy(padded)[None])[0, 0, :61, :40, :37].numpy()
    assert np.allclose(map_volume(volume, generator), whole, atol=1e-5)
    assert np.allclose(map_volume(volume, generator, tile=(16, 40, 12)), whole, atol=1e-5)
    most, least = plan(generator, (62, 40, 38), 1, memory_mib=4000), plan(generator, (62, 40, 38), 1, memory_mib=73)
    assert most.tile == (62, 40, 38)
    assert least.tile != most.tile
    assert all(t % 2 == 0 for t in least.tile)
    assert np.allclose(map_volume(volume, generator, memory_mib=73), whole, atol=1e-5)
    with pytest.raises(SettingsError, match="multiples of 2"):
        map_volume(volume, generator, tile=(15, 40, 12))


@pytest.mark.parametrize("norm", ["instance", "group"])
def test_norms_of_each_patch_have_no_whole_volume(norm):
    with pytest.raises(SettingsError, match=r"synthesis\.mode.*its layers see where a tile starts"):
        map_volume(np.zeros((1, 8, 8, 8), np.float32), shallow(norm=norm))
