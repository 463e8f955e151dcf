"""Section A of the table of faults: input volumes. Each test causes the real fault and is named by its row."""

import errno
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nifti_files import AFFINE, nifti_bytes, some_voxels, write_nifti
from peak_memory import MEASURABLE, WHERE, peak_growth_mib
from tool import as_ordinary_user

from unscanned.cli import main
from unscanned.contrast.check import named_contrasts
from unscanned.datasets.check import check_dataset
from unscanned.datasets.pairs import find_pairs
from unscanned.errors import DatasetError, VolumeError
from unscanned.synthesis.model_file import load_model
from unscanned.synthesis.synthesize import list_inputs, synthesize
from unscanned.training.run import train
from unscanned.volumes.nifti import read_volume, write_volume

INVALID = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}
ROTATED_3_DEGREES = np.array(
    [
        [np.cos(np.pi / 60), -np.sin(np.pi / 60), 0, 0],
        [np.sin(np.pi / 60), np.cos(np.pi / 60), 0, 0],
        [0, 0, 1, 0],
        [0, 0, 0, 1],
    ]
)


def refusal(path: Path, **options) -> VolumeError:
    with pytest.raises(VolumeError) as caught:
        read_volume(path, **options)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 3
    return caught.value


def write_pair(root: Path, subject: str, seed: int, **target_facts) -> Path:
    folder = root / f"sub-{subject}" / "anat"
    write_nifti(folder / f"sub-{subject}_PDw.nii.gz", some_voxels(seed=seed))
    target = {"voxels": some_voxels(seed=seed + 100), **target_facts}
    return write_nifti(folder / f"sub-{subject}_T2w.nii.gz", **target)


def errors_of(root: Path) -> list[tuple[str, str]]:
    findings = check_dataset(root, source="PD", target="T2")
    return [(finding.case, finding.fault) for finding in findings if finding.severity == "error"]


def refuse_all(paths: list[Path]) -> None:
    for path in paths:
        refusal(path)


# A1: a truncated file


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.nii"])
def test_a01_a_file_cut_at_every_percent_is_refused_with_the_share_read(tmp_path, name):
    content = write_nifti(tmp_path / name, some_voxels((32, 32, 20))).read_bytes()
    shares = []
    for percent in range(100):
        path = tmp_path / f"{percent}-{name}"
        path.write_bytes(content[: len(content) * percent // 100])
        told = re.search(r"cut short \(read (\d+) % of (\d+,?\d+) bytes of (header|voxels)\)", str(refusal(path)))
        assert told is not None
        shares.append((told[3], int(told[1])))
    assert shares == sorted(shares)
    assert shares[0] == ("header", 0)
    assert shares[-1] >= ("voxels", 97)


def test_a01_a_missing_checksum_is_refused_though_all_voxels_are_there(tmp_path):
    path = write_nifti(tmp_path / "scan.nii.gz")
    path.write_bytes(path.read_bytes()[:-4])
    assert "cut short; found all voxels but no gzip checksum" in str(refusal(path))


def test_a01_one_truncated_scan_does_not_stop_the_others(tmp_path):
    path = write_pair(tmp_path, "01", seed=1)
    path.write_bytes(path.read_bytes()[:-100])
    write_pair(tmp_path, "02", seed=2)
    assert errors_of(tmp_path) == [("sub-01", "unreadable")]


# A2: the right length, wrong bits


def test_a02_every_flipped_bit_in_a_stored_gzip_is_refused_or_harmless(tmp_path):
    voxels = some_voxels((2, 3, 2))
    path = write_nifti(tmp_path / "scan.nii.gz", voxels, level=0)
    content = path.read_bytes()
    refused = 0
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            volume = read_volume(path)
        except VolumeError:
            refused += 1
            continue
        assert bit // 8 <= 10, "only gzip's header and the padding of its stored block may change without harm"
        np.testing.assert_array_equal(volume.array, voxels)
    assert refused > 8 * (len(content) - 11)


def test_a02_a_wrong_checksum_says_that_the_data_are_damaged(tmp_path):
    path = write_nifti(tmp_path / "scan.nii.gz")
    content = bytearray(path.read_bytes())
    for position in range(-8, 0):
        flipped = content.copy()
        flipped[position] ^= 1
        path.write_bytes(flipped)
        assert "compressed data are damaged" in str(refusal(path))


# A3: a header that claims too much


@pytest.mark.skipif(not MEASURABLE, reason=WHERE)
def test_a03_huge_dimensions_are_refused_before_anything_is_allocated(tmp_path):
    paths = []
    for size in (1024, 32767):
        for name in ("scan.nii", "scan.nii.gz"):
            fields = {"dim": [3, size, size, size, 1, 1, 1, 1]}
            paths.append(write_nifti(tmp_path / str(size) / name, fields=fields))
            assert "claims more than the budget" in str(refusal(paths[-1]))
    assert peak_growth_mib(lambda: refuse_all(paths)) < 100


def test_a03_the_budget_counts_the_float32_volume_too(tmp_path):
    path = write_nifti(tmp_path / "scan.nii.gz", some_voxels(dtype="u1"))
    assert read_volume(path, limit_bytes=4 * 720).shape == (8, 9, 10)
    assert "at most 2,879" in str(refusal(path, limit_bytes=4 * 720 - 1))


@pytest.mark.skipif(not MEASURABLE, reason=WHERE)
def test_a03_a_claim_within_the_budget_costs_no_more_than_the_file_holds(tmp_path):
    path = write_nifti(tmp_path / "scan.nii.gz", fields={"dim": [3, 512, 512, 500, 1, 1, 1, 1]})
    assert peak_growth_mib(lambda: refuse_all([path])) < 100


@pytest.mark.skipif(not MEASURABLE, reason=WHERE)
def test_a03_one_volume_of_a_long_series_takes_the_memory_of_one(tmp_path):
    voxels = np.random.default_rng(0).integers(0, 99, (64, 64, 64, 60)).astype("u1")
    path = write_nifti(tmp_path / "scan.nii.gz", voxels)
    one = 4 * 64**3
    found = [read_volume(path, volume_index=index, limit_bytes=one).array for index in (0, 31, 59)]
    for array, index in zip(found, (0, 31, 59), strict=True):
        np.testing.assert_array_equal(array, voxels[..., index])
    assert peak_growth_mib(lambda: read_volume(path, volume_index=59, limit_bytes=one)) < 8  # all 60 are 15 as stored
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "cut short" in str(refusal(path, volume_index=0))


# A4: a bomb


def test_a04_where_memory_ends_the_volume_is_whole_or_one_error_says_so(tmp_path):
    path = tmp_path / "scan.nii"
    write_nifti(path, np.arange(128**3, dtype="<u2").reshape(128, 128, 128))
    write_nifti(tmp_path / "small.nii", some_voxels(seed=1))
    program = """
import resource, sys
from pathlib import Path
from unscanned.volumes.nifti import read_volume
from unscanned.errors import ResourceError
read_volume(sys.argv[3])  # what libraries allocate once is there
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + int(sys.argv[1]) * 2**20, -1))
try:
    print(read_volume(sys.argv[2]).shape)
except ResourceError as error:
    print(error.what)
"""
    said = []
    for room_mib in (1, 6, 10, 14, 18, 22, 26, 200):
        call = [sys.executable, "-c", program, str(room_mib), str(path), str(tmp_path / "small.nii")]
        done = subprocess.run(call, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, (room_mib, done.stderr)
        said.append(done.stdout.strip())
    assert said[0] == "there is not enough memory for this volume"
    assert said[-1] == "(128, 128, 128)"
    assert len(set(said)) == 2


@pytest.mark.skipif(not MEASURABLE, reason=WHERE)
def test_a04_bombs_inside_and_after_the_data_stay_within_memory(tmp_path):
    zeros = gzip.compress(bytes(2**24), mtime=0)
    after = write_nifti(tmp_path / "after.nii.gz")
    after.write_bytes(after.read_bytes() + 128 * zeros)
    assert "too many bytes follow the last voxel" in str(refusal(after))
    inside = tmp_path / "inside.nii.gz"
    fields = {"dim": [3, 1024, 1024, 1024, 1, 1, 1, 1]}
    inside.write_bytes(gzip.compress(nifti_bytes(fields=fields)) + 128 * zeros)
    before = tmp_path / "before.nii.gz"
    before.write_bytes(gzip.compress(nifti_bytes(fields={"vox_offset": 2.0**31})) + 128 * zeros)
    assert peak_growth_mib(lambda: refuse_all([after, inside, before])) < 100


def test_a04_millions_of_empty_gzip_members_are_refused_at_once(tmp_path):
    path = write_nifti(tmp_path / "scan.nii.gz")
    path.write_bytes(path.read_bytes() + 500_000 * gzip.compress(b"", mtime=0))
    assert "gzip members" in str(refusal(path))


@pytest.mark.parametrize("compressed", [True, False], ids=["decompressed", "behind gzip"])
def test_a04_a_little_padding_is_accepted_with_a_warning(tmp_path, compressed):
    path = write_nifti(tmp_path / "scan.nii.gz", tail=bytes(65536) if compressed else b"")
    if not compressed:
        path.write_bytes(path.read_bytes() + bytes(65536))
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array, some_voxels())
    assert volume.warnings == ("65,536 bytes follow the last voxel; they were ignored",)
    path.write_bytes(path.read_bytes() + (gzip.compress(b"0") if compressed else b"0"))
    assert "too many bytes" in str(refusal(path))


# A5: a malformed header


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"dim": [3, -8, 9, 10, 1, 1, 1, 1]}, "dimensions"),
        ({"dim": [3, 8, 0, 10, 1, 1, 1, 1]}, "dimensions"),
        ({"dim": [0, 8, 9, 10, 1, 1, 1, 1]}, "dimensions"),
        ({"dim": [8, 8, 9, 10, 1, 1, 1, 1]}, "dimensions"),
        ({"dim": [-3, 8, 9, 10, 1, 1, 1, 1]}, "dimensions"),
        ({"dim": [2, 8, 90, 1, 1, 1, 1, 1]}, "dimensions"),
        ({"vox_offset": np.nan}, "first voxel"),
        ({"vox_offset": -np.inf}, "first voxel"),
        ({"vox_offset": 0}, "first voxel"),
        ({"vox_offset": 352.5}, "first voxel"),
        ({"vox_offset": 1e30}, "budget"),
        ({"datatype": 999}, "unknown datatype 999"),
        ({"datatype": 0}, "unknown datatype 0"),
        ({"datatype": 1, "bitpix": 1}, "one bit a voxel"),
        ({"datatype": 32, "bitpix": 64}, "complex"),
        ({"datatype": 128, "bitpix": 24}, "RGB"),
        ({"datatype": 2304, "bitpix": 32}, "RGBA"),
        ({"datatype": 1536, "bitpix": 128}, "128-bit"),
        ({"bitpix": 8}, "contradicts itself"),
        ({"magic": b"ni1"}, "not a single NIfTI-1 file"),
        ({"magic": b""}, "not a single NIfTI-1 file"),
        ({"sizeof_hdr": 0}, "not NIfTI"),
        ({"sizeof_hdr": 540}, "NIfTI-2"),
    ],
)
def test_a05_a_malformed_header_is_refused_with_the_reason(tmp_path, fields, reason):
    assert reason in str(refusal(write_nifti(tmp_path / "scan.nii.gz", fields=fields)))


@pytest.mark.parametrize("name", ["scan.hdr", "scan.img", "scan.mgz", "scan.dcm", "scan"])
def test_a05_other_formats_are_refused_by_their_names(tmp_path, name):
    assert "does not say NIfTI" in str(refusal(write_nifti(tmp_path / name)))


@pytest.mark.parametrize("content", [b"", b"\x1f", b"\x1f\x8b", b"not an image", bytes(348), 400 * b"\xff"])
def test_a05_a_file_that_is_no_image_is_refused(tmp_path, content):
    for name in ("scan.nii", "scan.nii.gz"):
        (tmp_path / name).write_bytes(content)
        refusal(tmp_path / name)


def test_a05_nifti2_is_refused_and_says_what_to_do(tmp_path):
    import nibabel

    nibabel.save(nibabel.Nifti2Image(some_voxels(), AFFINE), tmp_path / "scan.nii.gz")
    error = refusal(tmp_path / "scan.nii.gz")
    assert "NIfTI-2" in str(error)
    assert "Convert" in str(error)


def read_or_refuse(content: bytes, folder: Path) -> None:
    path = folder / "scan.nii"
    path.write_bytes(content)
    try:
        volume = read_volume(path)
    except VolumeError as error:
        message = str(error)
    else:
        assert volume.array.dtype == np.float32
        assert np.isfinite(volume.array).all()
        assert abs(np.linalg.det(volume.affine[:3, :3])) > 0
        assert volume.array.nbytes <= 4 * (len(content) - 352)
        return
    assert message.startswith(str(path))


@settings(max_examples=300, deadline=5000)
@given(block=st.binary(min_size=348, max_size=348))
@example(block=b"\x5c\x01\0\0" + 344 * b"\xff")
def test_a05_any_348_bytes_are_read_or_refused(tmp_path_factory, block):
    read_or_refuse(block + nifti_bytes()[348:], tmp_path_factory.mktemp("any"))


@settings(max_examples=300, deadline=5000)
@given(
    edits=st.lists(
        st.tuples(
            st.integers(4, 346),
            st.one_of(
                st.binary(min_size=1, max_size=4),
                st.sampled_from([np.float32(v).tobytes() for v in (np.nan, np.inf, -np.inf, 0, -1, 1e38, 1e-42)]),
                st.sampled_from([np.int16(v).tobytes() for v in (-1, 0, 1, 7, 32767, -32768)]),
            ),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_a05_a_good_header_with_any_field_overwritten_is_read_or_refused(tmp_path_factory, edits):
    content = bytearray(nifti_bytes(qform=AFFINE))
    for position, value in edits:
        content[position : position + len(value)] = value
    read_or_refuse(bytes(content), tmp_path_factory.mktemp("edited"))


# A6: more than three axes


def test_a06_several_volumes_are_refused_and_the_option_is_named(tmp_path):
    path = write_nifti(tmp_path / "scan.nii.gz", some_voxels((16, 16, 20, 2)))
    assert "--volume-index 0 to 1" in str(refusal(path))


def test_a06_trailing_axes_of_one_are_dropped(tmp_path):
    path = write_nifti(tmp_path / "scan.nii.gz", some_voxels((16, 16, 20, 1, 1)))
    assert read_volume(path).shape == (16, 16, 20)


# A7: NaN and infinity


@pytest.mark.parametrize("value", INVALID.values(), ids=INVALID)
@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
def test_a07_a_single_voxel_that_is_no_number_is_refused(tmp_path, value, dtype):
    voxels = some_voxels(dtype=dtype)
    voxels[3, 4, 5] = value
    path = write_nifti(tmp_path / "scan.nii.gz", voxels)
    assert "found 1 of 720 voxels NaN or infinite" in str(refusal(path))


def test_a07_replacing_is_explicit_and_counted(tmp_path):
    voxels = some_voxels(dtype="<f4")
    voxels[0, 0, :3] = [np.nan, np.inf, -np.inf]
    volume = read_volume(write_nifti(tmp_path / "scan.nii.gz", voxels), replace_nonfinite=True)
    assert volume.array[0, 0, :3].tolist() == [0, 0, 0]
    np.testing.assert_array_equal(volume.array[1:], voxels[1:])
    assert volume.warnings == ("3 of 720 voxels were NaN or infinite and were replaced by 0",)


def test_a07_a_volume_of_nan_is_refused_even_with_replacement(tmp_path):
    path = write_nifti(tmp_path / "scan.nii.gz", np.full((4, 4, 4), np.nan, "<f4"))
    assert "no contrast" in str(refusal(path, replace_nonfinite=True))


def test_a07_a_number_too_large_for_float32_is_refused(tmp_path):
    voxels = some_voxels(dtype="<f8")
    voxels[0, 0, 0] = 1e39
    assert "not finite" in str(refusal(write_nifti(tmp_path / "a.nii", voxels)))
    assert "not finite" in str(refusal(write_nifti(tmp_path / "b.nii", fields={"scl_slope": 3e38})))


# A8: no contrast


def test_a08_volumes_without_contrast_are_refused(tmp_path):
    single = np.zeros((4, 4, 4), "<f4")
    single[1, 2, 3] = 7
    for voxels in (np.zeros((4, 4, 4), "<i2"), np.full((4, 4, 4), 5.0, "<f4"), single):
        assert "no contrast" in str(refusal(write_nifti(tmp_path / "scan.nii.gz", voxels)))


# A9: slope and intercept


@pytest.mark.parametrize("slope", [2.0, -0.5, 1e-3])
@pytest.mark.parametrize("dtype", ["<i2", ">i2", "u1", "<i4", "<f4"])
def test_a09_scaled_intensities_are_right_to_float32(tmp_path, slope, dtype):
    voxels = some_voxels(dtype=dtype)
    path = write_nifti(tmp_path / "scan.nii.gz", voxels, fields={"scl_slope": slope, "scl_inter": 5})
    expected = voxels.astype(np.float64) * np.float64(np.float32(slope)) + 5
    np.testing.assert_allclose(read_volume(path).array, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


def test_a09_wide_integers_keep_their_contrast_under_a_large_intercept(tmp_path):
    voxels = 2**30 + some_voxels(dtype="<i4")
    path = write_nifti(tmp_path / "scan.nii.gz", voxels, fields={"scl_slope": 1, "scl_inter": -(2.0**30)})
    np.testing.assert_array_equal(read_volume(path).array, some_voxels())


@pytest.mark.parametrize(("slope", "intercept"), [(0, 0), (np.nan, 0), (np.nan, np.nan), (0, np.nan)])
def test_a09_a_scaling_that_was_never_set_leaves_the_voxels_alone(tmp_path, slope, intercept):
    path = write_nifti(tmp_path / "scan.nii.gz", fields={"scl_slope": slope, "scl_inter": intercept})
    np.testing.assert_array_equal(read_volume(path).array, some_voxels())


@pytest.mark.parametrize(
    ("slope", "intercept"), [(0, 5), (np.nan, 5), (np.inf, 5), (np.inf, 0), (-np.inf, 0), (1, np.nan), (1, np.inf)]
)
def test_a09_a_scaling_that_cannot_be_applied_is_refused(tmp_path, slope, intercept):
    path = write_nifti(tmp_path / "scan.nii.gz", fields={"scl_slope": slope, "scl_inter": intercept})
    assert "intensity scaling cannot be applied" in str(refusal(path))


def test_a09_fractions_from_an_int16_source_are_not_quantised_on_output(tmp_path):
    source = read_volume(write_nifti(tmp_path / "source.nii.gz", fields={"scl_slope": 2, "scl_inter": 5}))
    array = source.array / 7
    write_volume(tmp_path / "out.nii.gz", array, source.affine)
    np.testing.assert_array_equal(read_volume(tmp_path / "out.nii.gz").array, array)


# A10: the affine


SINGULAR = AFFINE.copy()
SINGULAR[:, 1] = SINGULAR[:, 0]
MOVED = AFFINE.copy()
MOVED[0, 3] += 3


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"affine": None}, "does not say where its voxels lie"),
        ({"affine": SINGULAR}, "singular"),
        ({"affine": np.zeros((4, 4))}, "singular"),
        ({"affine": SINGULAR, "qform": AFFINE}, "singular"),
        ({"fields": {"srow_x": [np.nan, 0, 0, 0]}}, "not finite"),
        ({"fields": {"srow_z": [0, 0, np.inf, 0]}}, "not finite"),
        ({"affine": None, "qform": AFFINE, "fields": {"quatern_b": np.nan}}, "not finite"),
        ({"affine": None, "qform": AFFINE, "fields": {"quatern_b": 3}}, "not finite"),
        ({"affine": None, "qform": AFFINE, "fields": {"pixdim": [1, 1, 0, 1, 1, 1, 1, 1]}}, "singular"),
    ],
)
def test_a10_an_unusable_transform_is_refused_and_printed(tmp_path, facts, reason):
    error = refusal(write_nifti(tmp_path / "scan.nii.gz", **facts))
    assert reason in str(error)
    assert "sform " in str(error)
    assert "qform " in str(error)


def test_a10_of_two_transforms_the_sform_wins_with_a_warning_that_prints_both(tmp_path):
    volume = read_volume(write_nifti(tmp_path / "scan.nii.gz", qform=MOVED))
    np.testing.assert_array_equal(volume.affine, AFFINE)
    (warning,) = volume.warnings
    assert "differ by up to 3 mm" in warning
    assert "sform [-1.5 0 0 30; " in warning
    assert "qform [-1.5 0 0 33; " in warning


def test_a10_two_transforms_that_agree_to_a_tenth_of_a_millimetre_are_not_reported(tmp_path):
    near = AFFINE.copy()
    near[0, 3] += 0.09
    assert read_volume(write_nifti(tmp_path / "scan.nii.gz", qform=near)).warnings == ()


def test_a10_shear_is_accepted_with_a_warning_and_kept(tmp_path):
    sheared = AFFINE.copy()
    sheared[0, 1] = 0.25
    volume = read_volume(write_nifti(tmp_path / "scan.nii.gz", affine=sheared))
    np.testing.assert_array_equal(volume.affine, sheared)
    assert "right angles" in volume.warnings[0]


# A10b: voxels of a size that no scan has


@pytest.mark.parametrize(
    ("spacing_mm", "unit", "likely"),
    [
        (1000.0, 3, "as micrometres (the header says so) they are 1 x 1 x 1 mm"),
        (1000.0, 2, "as micrometres (they are likely in that unit) they are 1 x 1 x 1 mm"),
        (0.001, 1, "as metres (the header says so) they are 1 x 1 x 1 mm"),
        (0.001, 2, "as metres (they are likely in that unit) they are 1 x 1 x 1 mm"),
        (30.0, 2, "Export the scan again with its true voxel size"),
        (8e-6, 2, "Export the scan again with its true voxel size"),
    ],
)
def test_a10_voxels_in_another_unit_are_refused_at_once_with_the_likely_unit(tmp_path, spacing_mm, unit, likely):
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    shape = (200, 200, 200)
    path = write_nifti(tmp_path / "scan.nii", some_voxels((4, 4, 4)), affine=affine)
    content = nifti_bytes(
        some_voxels((4, 4, 4)), affine=affine, fields={"xyzt_units": unit, "dim": [3, *shape, 1, 1, 1, 1]}
    )
    path.write_bytes(content)  # the voxels are not there: it is refused by its header
    assert "is not that of a scan of a head" in str(refusal(path))
    assert likely in str(refusal(path))


def test_a10_a_scan_in_micrometres_does_not_stop_the_others(tmp_path, cli, tiny_run):
    for number, factor in enumerate((1, 1000, 1)):
        voxels = some_voxels((20, 24, 22), seed=number)
        write_nifti(tmp_path / "in" / f"sub-0{number}_PDw.nii", voxels, affine=np.diag([*3 * [3.0 * factor], 1.0]))
        write_nifti(tmp_path / "in" / f"sub-0{number}_T2w.nii", voxels // 2, affine=np.diag([*3 * [3.0 * factor], 1.0]))
    assert errors_of(tmp_path / "in") == 2 * [("sub-01", "spacing")]
    done = cli("synthesize", tiny_run, tmp_path / "in", "-o", tmp_path / "out", "--force")
    assert done.returncode == 4
    assert len(list((tmp_path / "out").rglob("*.nii.gz"))) == 2
    done = cli("prepare", tmp_path / "in", "-o", tmp_path / "prepared", "--preset", "demo")
    assert done.returncode == 4
    assert len(list((tmp_path / "prepared").rglob("case.json"))) == 2


# A11, A12: pairs on different grids


def shifted_5_mm() -> np.ndarray:
    affine = AFFINE.copy()
    affine[1, 3] += 5
    return affine


@pytest.mark.parametrize(
    "affine",
    [AFFINE @ np.diag([-1.0, 1, 1, 1]), shifted_5_mm(), ROTATED_3_DEGREES @ AFFINE],
    ids=["an axis flipped", "shifted 5 mm", "rotated 3 degrees"],
)
def test_a11_a_pair_apart_in_space_is_refused_and_the_others_are_not(tmp_path, affine):
    write_pair(tmp_path, "01", seed=1)
    write_pair(tmp_path, "02", seed=2, affine=affine)
    assert errors_of(tmp_path) == [("sub-02", "grid")]


def test_a11_the_same_space_in_another_order_of_axes_is_no_fault(tmp_path):
    affine = AFFINE.copy()
    affine[:, 0] *= -1
    affine[0, 3] = AFFINE[0, 0] * 7 + AFFINE[0, 3]
    write_pair(tmp_path, "01", seed=1, affine=affine)
    assert errors_of(tmp_path) == []


def test_a12_another_spacing_is_refused_with_both_grids_named(tmp_path):
    thick = AFFINE @ np.diag([1.0, 1, 3, 1])
    write_pair(tmp_path, "01", seed=1, voxels=some_voxels((8, 9, 4)), affine=thick)
    findings = [f for f in check_dataset(tmp_path, source="PD", target="T2") if f.severity == "error"]
    assert [finding.fault for finding in findings] == ["grid"]
    assert "8x9x10 of 1.5x1.25x2 mm against 8x9x4 of 1.5x1.25x6 mm" in findings[0].message
    assert "prepare.resample" in findings[0].message


# A14: duplicates


def test_a14_a_scan_copied_under_a_new_id_is_an_error(tmp_path):
    original = write_pair(tmp_path, "01", seed=1)
    copy = write_pair(tmp_path, "02", seed=2)
    copy.write_bytes(original.read_bytes())
    assert errors_of(tmp_path) == [("sub-02", "duplicate")]


def test_a14_a_copy_that_was_compressed_again_is_found_too(tmp_path):
    original = write_pair(tmp_path, "01", seed=1)
    copy = write_pair(tmp_path, "02", seed=2)
    copy.write_bytes(gzip.compress(gzip.decompress(original.read_bytes()), 1, mtime=1))
    assert errors_of(tmp_path) == [("sub-02", "duplicate")]


def test_a14_a_target_that_is_its_own_source_is_an_error(tmp_path):
    write_pair(tmp_path, "01", seed=1, voxels=some_voxels(seed=1))
    assert errors_of(tmp_path) == [("sub-01", "duplicate")]


@pytest.mark.parametrize("copied", ["into training", "into test", "onto the target"])
def test_a14_training_refuses_a_file_that_stands_for_two_scans(tmp_path, capsys, tiny_dataset, copied):
    dataset = shutil.copytree(tiny_dataset, tmp_path / "dataset")
    subjects = [path.name for path in sorted(dataset.glob("sub-*"))]
    split = {"train": subjects[:2], "validation": subjects[2:3], "test": subjects[3:4]}
    (tmp_path / "split.json").write_text(json.dumps(split))
    scans = {name: dataset / name / "anat" / f"{name}_PDw.nii.gz" for name in subjects}
    source = scans[subjects[0]]
    other = {
        "into training": scans[subjects[1]],
        "into test": scans[subjects[3]],
        "onto the target": source.with_name(source.name.replace("PDw", "T2w")),
    }[copied]
    shutil.copy(source, other)
    run = tmp_path / "run"
    call = ["train", str(dataset), "-o", str(run), "--preset", "demo", "--split.file", str(tmp_path / "split.json")]
    assert main([*call, "--prepare.shape", "32", "32", "32"]) == 3
    message = capsys.readouterr().err
    assert "one file is the scan of two subjects, or both scans of one" in message
    assert subjects[0] in message
    assert not (run / "checkpoints").exists()


# A15: paths

ODD = Path("días_磁共振") / "体 积" / ("long " * 40)


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_a15_any_name_is_read_and_written_in_any_locale(tmp_path, locale):
    root = tmp_path / ODD
    write_pair(root, "01", seed=1)
    program = """
import sys
from pathlib import Path
from unscanned.datasets.check import check_dataset
from unscanned.datasets.pairs import find_pairs
from unscanned.volumes.nifti import read_volume, write_volume
root = Path(sys.argv[1])
assert check_dataset(root, source="PD", target="T2") == []
(pair,) = find_pairs(root)
volume = read_volume(pair.source)
write_volume(root / chr(233) / "scan.nii.gz", volume.array, volume.affine)
assert (read_volume(root / chr(233) / "scan.nii.gz").array == volume.array).all()
"""
    environment = {**os.environ, "LC_ALL": locale}
    result = subprocess.run(
        [sys.executable, "-c", program, str(root)], capture_output=True, env=environment, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr.decode()


@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii:strict"])
def test_a15_a_name_that_is_no_text_is_synthesized_like_any_other(tmp_path, tiny_dataset, tiny_run, encoding):
    first = tiny_dataset / "sub-001" / "anat" / "sub-001_PDw.nii.gz"
    scan = Path(os.fsdecode(os.fsencode(tmp_path) + b"/h\xf6pital_PDw.nii.gz"))
    shutil.copy(first, scan)
    out = tmp_path / "out"
    program = """
import sys
from pathlib import Path
from unscanned.cli import main
model, *scans, out = sys.argv[1:]
assert main(["synthesize", model, *scans, "-o", out]) == 0
print("then", flush=True)
[odd] = Path(out).rglob("sub-hpitalPDw_*.nii.gz")
assert main(["verify", str(odd)]) == 0
"""
    call = [sys.executable, "-c", program, tiny_run / "model", scan, first, out]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(call, capture_output=True, env=environment, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()
    made = sorted(out.rglob("*_desc-synthetic_T2w.nii.gz"))
    assert sorted(done.stdout.split(b"then\n")[0].splitlines()) == [os.fsencode(path) for path in made]
    assert len(made) == 2


def test_a15_links_in_circles_are_reported(tmp_path):
    write_pair(tmp_path, "01", seed=1)
    (tmp_path / "sub-01" / "again").symlink_to(tmp_path)
    (tmp_path / "nowhere").symlink_to(tmp_path / "nowhere")
    scan = tmp_path / "sub-02" / "anat" / "sub-02_PDw.nii.gz"
    write_nifti(scan.with_name("sub-02_T2w.nii.gz"), some_voxels(seed=3))
    scan.symlink_to(scan)
    assert os.strerror(errno.ELOOP) in str(refusal(scan))
    found = {(f.case, f.severity, f.path) for f in check_dataset(tmp_path, source="PD", target="T2")}
    assert found == {
        ("dataset", "warning", tmp_path / "sub-01" / "again"),
        ("dataset", "warning", tmp_path / "nowhere"),
        ("sub-02", "error", scan),
    }


@pytest.mark.parametrize("fault", ["circle", "circle inside", "forbidden"])
def test_a15_a_subject_whose_folder_cannot_be_read_is_named_by_every_verb(
    tmp_path, tiny_dataset, tiny_run, settings_file, fault
):
    dataset = shutil.copytree(tiny_dataset, tmp_path / "dataset")
    for inner in ("anat", "."):
        if fault == "circle" and inner == ".":
            shutil.rmtree(dataset / "sub-005", ignore_errors=True)
            (dataset / "sub-005").symlink_to("sub-005")
        elif fault == "circle inside" and inner == "anat":
            (dataset / "sub-005").mkdir()
            (dataset / "sub-005" / "anat").symlink_to("anat")
        elif fault == "forbidden" and inner == "anat":
            shutil.copytree(dataset / "sub-004", dataset / "sub-005")
            (dataset / "sub-005").chmod(0)
    run = shutil.copytree(tiny_run, tmp_path / "run")
    file = shutil.copy(settings_file, tmp_path / "settings.toml")
    tmp_path.chmod(0o777)
    for above in tmp_path.parents[:3]:
        above.chmod(above.stat().st_mode | 0o055)

    def every_verb() -> None:
        (finding,) = check_dataset(dataset, source="PD", target="T2")
        assert (finding.case, finding.severity, finding.fault) == ("sub-005", "error", "unreadable")
        out = tmp_path / "out"
        assert main(["prepare", str(dataset), "-o", str(out / "prepared"), "--preset", "demo"]) == 4
        assert main(["train", str(dataset), "-o", str(out / "run"), "--settings", str(file), "--preset", "demo"]) == 4
        assert main(["synthesize", str(run), str(dataset), "-o", str(out / "made"), "--force"]) == 4
        assert len(list((out / "made").rglob("*_desc-synthetic_T2w.nii.gz"))) == 4
        case = out / "made" / "sub-004" / "anat" / "sub-004_desc-synthetic_T2w"
        for suffix in (".nii.gz", ".json"):
            twin = Path(str(case).replace("sub-004", "sub-005") + suffix)
            twin.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(f"{case}{suffix}", twin)
        assert main(["evaluate", str(dataset), str(out / "made"), "-o", str(out / "scores")]) == 4

    try:
        assert as_ordinary_user(every_verb) == 0
    finally:
        if fault == "forbidden":
            (dataset / "sub-005").chmod(0o755)


def test_a15_a_link_that_leads_nowhere_beside_whole_scans_is_only_a_warning(tmp_path):
    write_pair(tmp_path, "01", seed=1)
    (tmp_path / "sub-01" / "anat" / "sub-01_T2w.json").symlink_to("gone.json")
    (finding,) = check_dataset(tmp_path, source="PD", target="T2")
    assert (finding.case, finding.severity, finding.fault) == ("sub-01", "warning", "name")
    assert os.strerror(errno.ENOENT) in finding.message


def test_a15_a_pipe_or_an_endless_device_as_table_or_sidecar_is_told_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "zero.csv").symlink_to("/dev/zero")
    for name in ("pipe.csv", "zero.csv"):
        with pytest.raises(DatasetError, match=r"the table cannot be read; found .*it is not a regular file"):
            find_pairs(tmp_path / name)
    for number, beside in enumerate(("pipe.csv", "zero.csv")):
        scan = write_nifti(tmp_path / f"{number}.nii.gz")
        (tmp_path / f"{number}.json").symlink_to(beside)
        assert named_contrasts(scan) == []
    (tmp_path / "deep.json").write_text("[" * 100_000)
    write_nifti(tmp_path / "deep.nii.gz")
    assert named_contrasts(tmp_path / "deep.nii.gz") == []


@pytest.mark.parametrize("name", ["a" * 300, "/".join(["a" * 200] * 30)])
def test_a15_a_path_that_is_too_long_is_refused_like_one_that_is_not_there(tmp_path, cli, tiny_run, name):
    for path in (tmp_path / name, tmp_path / f"{name}.csv", tmp_path / f"{name}.nii.gz"):
        done = cli("check", path)
        assert done.returncode == 3
        done = cli("synthesize", tiny_run, path, "-o", tmp_path / "out")
        assert done.returncode in (3, 4)
        assert "Traceback" not in done.stderr
    (tmp_path / "pairs.csv").write_text(f"subject,PD,T2\n01,{name}.nii,b\0.nii\n")
    done = cli("prepare", tmp_path / "pairs.csv", "-o", tmp_path / "prepared")
    assert done.returncode == 3


def test_a15_settings_that_are_nested_too_deeply_are_refused(tmp_path, cli, tiny_dataset):
    (tmp_path / "deep.toml").write_text("a = " + "[" * 100_000)
    done = cli("prepare", tiny_dataset, "-o", tmp_path / "out", "--settings", tmp_path / "deep.toml")
    assert done.returncode == 2
    assert "the settings file cannot be read" in done.stderr


def test_a15_what_is_no_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.nii.gz")
    (tmp_path / "folder.nii.gz").mkdir()
    assert "not a file" in str(refusal(tmp_path / "pipe.nii.gz"))
    assert "not a file" in str(refusal(tmp_path / "folder.nii.gz"))
    assert "No such file" in str(refusal(tmp_path / "missing.nii.gz"))
    assert "null" in str(refusal(tmp_path / "a\0b.nii.gz"))


# A16: a folder that may not be written to


def test_a16_a_raw_dataset_as_output_is_refused_and_keeps_its_description(tmp_path, capsys, tiny_dataset, tiny_run):
    raw = shutil.copytree(tiny_dataset, tmp_path / "raw")
    before = sorted(path.relative_to(raw) for path in raw.rglob("*"))
    description = (raw / "dataset_description.json").read_bytes()
    scan = raw / "sub-001" / "anat" / "sub-001_PDw.nii.gz"
    for entry, reason in (
        (raw, "the output folder is the dataset itself"),
        (scan, "lies among the scans of a dataset"),
    ):
        assert main(["synthesize", str(tiny_run / "model"), str(entry), "-o", str(raw)]) == 2
        message = capsys.readouterr().err
        assert reason in message
        assert "derivatives/unscanned" in message
    assert (raw / "dataset_description.json").read_bytes() == description
    assert sorted(path.relative_to(raw) for path in raw.rglob("*")) == before
    inside = raw / "derivatives" / "unscanned"
    assert main(["synthesize", str(tiny_run / "model"), str(raw), "-o", str(inside)]) == 0


def test_a16_no_verb_writes_into_a_dataset_without_a_description(cli, tmp_path, tiny_dataset, tiny_run, settings_file):
    raw = tmp_path / "ixi"
    raw.mkdir()
    for number in (1, 2, 3, 4):
        for contrast in ("PD", "T2"):
            scan = tiny_dataset / f"sub-00{number}" / "anat" / f"sub-00{number}_{contrast}w.nii.gz"
            shutil.copy(scan, raw / f"IXI00{number}-HH-1211-{contrast}.nii.gz")
    before = sorted(raw.rglob("*"))
    work = (
        ["synthesize", tiny_run / "model", raw],
        ["train", raw, "--preset", "demo", "--settings", settings_file],
        ["prepare", raw],
        ["reproduce", raw, "--arms", "demo", "--settings", settings_file],
        ["evaluate", raw, tiny_run],
    )
    for command in work:
        done = cli(*command, "-o", raw)
        assert done.returncode == 2, command
        assert "the output folder is the dataset itself" in done.stderr
    assert sorted(raw.rglob("*")) == before


def test_a16_a_read_only_dataset_is_read_and_nothing_is_written_into_it():
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_pair(root, "01", seed=1)
        folders = [root, root / "sub-01", root / "sub-01" / "anat"]
        for folder in folders:
            folder.chmod(0o555)

        def read_everything() -> None:
            assert check_dataset(root, source="PD", target="T2") == []
            assert not os.access(root, os.W_OK)

        before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
        try:
            assert as_ordinary_user(read_everything) == 0
            assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
        finally:
            for folder in folders:
                folder.chmod(0o755)


def test_a16_a_read_only_dataset_under_odd_names_is_trained_on_and_synthesized(tiny_dataset, tiny_settings):
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        dataset = shutil.copytree(tiny_dataset, root / ODD / "data set")
        (root / "out").mkdir()
        (root / "out").chmod(0o777)
        out = root / "out" / ODD
        folders = [dataset, *(path for path in dataset.rglob("*") if path.is_dir())]
        for folder in folders:
            folder.chmod(0o555)

        def train_and_synthesize() -> None:
            assert not os.access(dataset, os.W_OK)
            train(dataset, out / "run", tiny_settings)
            scans = list_inputs([dataset], source="PD", target="T2")[0][:1]
            made = synthesize(load_model(out / "run"), scans, out / "synthetic")
            assert made.failures == {}
            assert read_volume(made.written[0]).shape == read_volume(scans[0][0]).shape

        before = {path: path.stat().st_mtime_ns for path in [dataset, *dataset.rglob("*")]}
        try:
            assert as_ordinary_user(train_and_synthesize) == 0
            assert {path: path.stat().st_mtime_ns for path in [dataset, *dataset.rglob("*")]} == before
        finally:
            for folder in folders:
                folder.chmod(0o755)


def test_a16_a_file_and_a_folder_that_may_not_be_read_are_reported():
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        write_pair(root, "01", seed=1).chmod(0)
        write_pair(root, "02", seed=2)
        (root / "sub-03").mkdir(0)

        def see_what_is_wrong() -> None:
            findings = check_dataset(root, source="PD", target="T2")
            assert {(f.case, f.fault) for f in findings} == {("sub-01", "unreadable"), ("sub-03", "unreadable")}
            assert all("ermi" in f.message for f in findings)

        assert as_ordinary_user(see_what_is_wrong) == 0


def test_a15_links_in_a_circle_that_would_have_one_output_are_refused_each(tmp_path, capsys, tiny_run):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "sub-01_PDw.nii.gz").symlink_to("sub-01_PDw.nii.gz")
    scans = [str(tmp_path / folder / "sub-01_PDw.nii.gz") for folder in ("one", "two")]
    for words in (scans, scans[:1], [scans[0], scans[0]]):
        assert main(["synthesize", str(tiny_run), *words, "-o", str(tmp_path / "out")]) in (2, 3, 4)
        assert "bug" not in capsys.readouterr().err


@pytest.mark.parametrize("contrast", ["PDw", "T2w"])
def test_a15_a_scan_that_is_a_link_in_a_circle_is_named_by_every_verb(
    tmp_path, capsys, tiny_dataset, tiny_run, settings_file, contrast
):
    dataset, out = shutil.copytree(tiny_dataset, tmp_path / "dataset"), tmp_path / "out"
    settings = ["--settings", str(shutil.copy(settings_file, tmp_path / "settings.toml")), "--preset", "demo"]
    assert main(["synthesize", str(tiny_run), str(dataset), "-o", str(out / "made"), "--force"]) == 0
    scan = dataset / "sub-001" / "anat" / f"sub-001_{contrast}.nii.gz"
    scan.unlink()
    scan.symlink_to(scan.name)
    made = out / "made" / "sub-001" / "anat" / "sub-001_desc-synthetic_T2w.nii.gz"
    calls = {
        "evaluate": [dataset, out / "made", "-o", out / "scores"],
        "prepare": [dataset, "-o", out / "prepared", *settings],
        "train": [dataset, "-o", out / "run", *settings],
        "check": [dataset, "--measure-s", 0],
        "verify": [made, "--scan", scan],
        "view": [scan, "-o", out / "page.html", "--no-open"],
    }
    for verb, words in calls.items():
        code = main([verb, *map(str, words)])
        assert code in (3, 4, 8), (verb, code)
        assert scan.name in "".join(capsys.readouterr()), verb


def test_a_refusal_of_every_scan_still_leaves_a_readable_message(tmp_path):
    write_nifti(tmp_path / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    with pytest.raises(DatasetError, match="no pair of PD and T2 was found; found 1 problems"):
        find_pairs(tmp_path)
