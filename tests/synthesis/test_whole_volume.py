import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from unscanned.errors import SettingsError
from unscanned.models.generators import FastGenerator, build
from unscanned.models.nie import NieGenerator, SmallGenerator
from unscanned.models.wrappers import Residual
from unscanned.settings import Synthesis
from unscanned.synthesis.context import PatchChain, chain
from unscanned.synthesis.whole_volume import DEFAULT_MEMORY_MIB, check_network, map_volume, plan

KERNELS = {"three layers": (5, 3, 3), "nine layers": (9, 3, 3, 3, 9, 3, 3, 7, 3)}


def generator(kernels, channels=1, dtype=torch.float32, convolution="auto"):
    torch.manual_seed(0)
    network = NieGenerator(channels, filters=(3,) * (len(kernels) - 1), kernels=kernels)
    for norm in network.norms:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        nn.init.normal_(norm.bias)
    network.convolution = convolution
    return network.eval().to(dtype)


def volume(*shape, dtype=np.float32):
    return np.random.default_rng(1).standard_normal(shape).astype(dtype)


@torch.inference_mode()
def untiled(network, source):
    """The definition: `Conv3d` on the volume as one patch."""
    inner = network.generator if isinstance(network, Residual) else network
    before, inner.convolution = inner.convolution, "plain"
    result = network(torch.from_numpy(source)[None])[0, 0].numpy()
    inner.convolution = before
    return result


def relative(result, expected):
    return np.abs(result - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("convolution", ["auto", "plain"])
@pytest.mark.parametrize("tile", [(2, 40, 40), (4, 7, 9), (8, 13, 64), (64, 10, 22)])
def test_the_tiled_result_equals_the_untiled_one_whatever_the_tile(tile, convolution):
    network, source = generator(KERNELS["three layers"], convolution=convolution), volume(1, 21, 26, 23)
    assert relative(map_volume(source, network, tile=tile), untiled(network, source)) < 1e-5


@pytest.mark.parametrize("shape", [(9, 8, 7), (1, 5, 2), (40, 3, 34), (34, 35, 4)])
def test_a_volume_of_any_size_keeps_its_border_where_it_is(shape):
    network, source = generator(KERNELS["three layers"], dtype=torch.float64), volume(1, *shape, dtype=np.float64)
    assert relative(map_volume(source, network, tile=(8, 16, 16)), untiled(network, source)) < 1e-12


@pytest.mark.parametrize("brick", [(2, 2), (8, 4), (4, 32), (12, 16), (64, 64)])
def test_the_result_does_not_depend_on_the_brick(brick):
    network, source = generator(KERNELS["nine layers"], dtype=torch.float64), volume(1, 19, 22, 37, dtype=np.float64)
    assert relative(map_volume(source, network, brick=brick), untiled(network, source)) < 1e-12


def test_all_nine_layers_agree_in_double_precision_across_several_tiles():
    network, source = generator(KERNELS["nine layers"], dtype=torch.float64), volume(1, 19, 35, 33, dtype=np.float64)
    assert relative(map_volume(source, network, tile=(16, 20, 33)), untiled(network, source)) < 1e-12


def test_the_source_is_added_and_a_second_channel_is_taken():
    network = Residual(generator(KERNELS["three layers"], channels=2)).eval()
    source = volume(2, 17, 20, 14)
    assert relative(map_volume(source, network, tile=(4, 9, 14)), untiled(network, source)) < 1e-5


def test_the_network_is_left_in_the_mode_it_was_in():
    network = generator(KERNELS["three layers"]).train()
    map_volume(volume(1, 8, 8, 8), network)
    assert network.training


def test_a_chain_maps_volume_after_volume():
    first, second = generator(KERNELS["three layers"]), generator(KERNELS["three layers"], channels=2)
    source = volume(12, 14, 16)
    by_hand = untiled(second, np.stack([source, untiled(first, source[None])]))
    for context in ("volume", "patch"):
        result = chain(source, [first, second], Synthesis(mode="volume"), context=context)
        assert relative(result, by_hand) < 1e-5
    patches = PatchChain([first, second])
    with torch.inference_mode():
        whole = patches(torch.from_numpy(source)[None, None])[0, 0].numpy()
        prepared = patches.eval()(torch.from_numpy(source)[None, None])[0, 0].numpy()
    assert relative(result, whole) < 1e-5
    assert relative(prepared, whole) < 1e-5
    assert [type(stage) for stage in patches._prepared] == [FastGenerator, FastGenerator]


def test_progress_ends_with_all_voxels_done():
    seen = []
    map_volume(volume(1, 9, 10, 11), generator(KERNELS["three layers"]), progress=lambda *step: seen.append(step))
    assert seen[-1][:2] == (990, 990)
    assert [done for done, *_ in seen] == sorted(done for done, *_ in seen)


def test_a_smaller_memory_gives_smaller_tiles_and_too_little_says_how_much_would_do():
    network, shape = NieGenerator(), (256, 256, 256)
    for stream in (None, network.stream(torch.zeros(1, 1, 2, 2, 2))):
        cuts = [plan(network, shape, 1, memory_mib=mib, stream=stream) for mib in (1000, 2000, 20_000)]
        sizes = [(np.prod(cut.tile), np.prod(cut.brick or 0)) for cut in cuts]
        assert sizes == sorted(sizes)
        assert sizes[0] < sizes[-1]
    with pytest.raises(SettingsError, match=r"expected at least \d+\. Raise it") as refused:
        plan(network, shape, 1, memory_mib=120)
    plan(network, shape, 1, memory_mib=int(str(refused.value.expected).split()[-1]))


def test_a_network_whose_context_is_unknown_is_refused_by_the_name_of_the_other_mode():
    with pytest.raises(SettingsError, match="expected patches"):
        check_network(nn.Conv3d(1, 1, 3))
    with pytest.raises(SettingsError, match="Conv3d"):
        map_volume(volume(1, 8, 8, 8), Residual(nn.Conv3d(1, 1, 3)))


needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system tells no process its peak")


def peak_mib_of(program):
    """Peak resident memory above that of the imports, of a program that ends with `measure(function)`, in MiB."""
    prologue = """
        from pathlib import Path
        import numpy as np, torch
        from unscanned.models.nie import NieGenerator
        from unscanned.synthesis.reconstruct import reconstruct
        from unscanned.synthesis.whole_volume import map_volume
        torch.set_num_threads(1)

        def peak():
            # Not getrusage: its peak includes that of the process that started this one.
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10

        def measure(*functions):
            before = peak()
            for function in functions:
                function()
                print(peak() - before)
    """
    text = textwrap.dedent(prologue) + textwrap.dedent(program)
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    return [float(line) for line in done.stdout.split()]


@needs_proc
def test_the_memory_stays_under_its_cap():
    program = """
        network, source = NieGenerator(filters=(32, 32), kernels=(5, 3, 3)), np.zeros((1, 64, 64, 64), np.float32)

        def mapped(convolution):
            network.convolution = convolution
            map_volume(source, network, memory_mib=96)

        measure(lambda: mapped("auto"), lambda: mapped("plain"))
    """
    assert all(0 < peak < 96 for peak in peak_mib_of(program))


@needs_proc
def test_the_memory_stays_under_its_cap_with_large_kernels_and_two_threads():
    program = """
        torch.set_num_threads(2)
        network = NieGenerator(filters=(32, 32, 16), kernels=(5, 3, 7, 3))
        source = np.zeros((1, 64, 64, 64), np.float32)
        measure(lambda: map_volume(source, network, memory_mib=CAP))
    """
    for cap in (180, 240):
        (peak,) = peak_mib_of(program.replace("CAP", str(cap)))
        assert cap / 2 < peak < cap


@needs_proc
def test_the_memory_of_the_average_does_not_grow_with_the_number_of_patches():
    program = """
        network = NieGenerator(filters=(2,), kernels=(3, 3))
        source = np.random.default_rng(0).standard_normal((1, 48, 48, 32)).astype(np.float32)
        options = {"patch": 16, "batch": 16}
        measure(*(lambda s=stride: reconstruct(source, network, stride=s, **options) for stride in (16, 16, 3)))
    """
    _, few, many = peak_mib_of(program)  # of 18 patches, twice, and of 1008
    outputs_mib = (1008 - 18) * 16**3 * 4 / 2**20
    assert few > 0
    assert many < few + outputs_mib / 2


def test_bfloat16_is_another_rounding_of_the_same_volume():
    network, source = SmallGenerator().eval(), volume(1, 24, 24, 24)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = map_volume(source, network)
    error = relative(rounded, untiled(network, source))
    assert rounded.dtype == np.float32
    assert 1e-5 < error < 0.05


def test_where_no_limit_is_set_a_large_volume_gets_what_its_smallest_part_takes():
    network, shape = build("segresnet", options={"filters": 32}).eval(), (160, 160, 160)
    with pytest.raises(SettingsError) as refused:
        plan(network, shape, 1, memory_mib=DEFAULT_MEMORY_MIB)
    needed = int(str(refused.value.expected).split()[-1])
    assert plan(network, shape, 1) == plan(network, shape, 1, memory_mib=needed)
