"""The reader and writer on files that are right; tests/faults/test_a_input.py has those that are wrong."""

import gzip
import hashlib

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nifti_files import AFFINE, nifti_bytes, some_voxels, write_nifti

from unscanned.errors import VolumeError
from unscanned.volumes.nifti import Volume, grid_difference, read_volume, write_volume

TYPES = ["u1", "i1", "<i2", ">i2", "<u2", "<i4", ">u4", "<i8", "<u8", "<f4", ">f4", "<f8", ">f8"]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_every_voxel_type_is_read_as_float32(tmp_path, dtype, name):
    voxels = some_voxels(dtype=dtype)
    volume = read_volume(write_nifti(tmp_path / name, voxels))
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array, voxels.astype(np.float32))
    np.testing.assert_array_equal(volume.affine, AFFINE)
    assert volume.warnings == ()


def test_a_volume_knows_its_geometry_and_its_file(tmp_path):
    path = write_nifti(tmp_path / "scan.nii.gz")
    volume = read_volume(str(path))
    assert volume.shape == (8, 9, 10)
    assert volume.spacing_mm == (1.5, 1.25, 2.0)
    assert volume.orientation == "LAS"
    assert volume.path == path
    assert volume.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_nibabel_reads_the_same_numbers_from_real_scans(shared_data):
    for path in sorted(shared_data.glob("**/sub-ms*_ses-?_T1w.nii.gz")):
        volume, reference = read_volume(path), nibabel.load(path)
        np.testing.assert_array_equal(volume.array, reference.get_fdata(dtype=np.float32))
        np.testing.assert_allclose(volume.affine, reference.affine, atol=1e-6)


def test_content_decides_what_is_compressed(tmp_path):
    plain = write_nifti(tmp_path / "a.nii").rename(tmp_path / "a.nii.gz")
    packed = write_nifti(tmp_path / "b.nii.gz").rename(tmp_path / "b.nii")
    np.testing.assert_array_equal(read_volume(plain).array, read_volume(packed).array)


def test_gzip_members_are_one_file(tmp_path):
    content = nifti_bytes()
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(b"".join(gzip.compress(content[i : i + 100]) for i in range(0, len(content), 100)))
    np.testing.assert_array_equal(read_volume(path).array, some_voxels())


def test_header_extensions_are_stepped_over(tmp_path):
    path = write_nifti(tmp_path / "scan.nii.gz", fields={"vox_offset": 200_000})
    np.testing.assert_array_equal(read_volume(path).array, some_voxels())


def test_qform_alone_gives_the_affine(tmp_path):
    volume = read_volume(write_nifti(tmp_path / "scan.nii", affine=None, qform=AFFINE))
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)


def test_one_volume_of_several_is_chosen_by_number(tmp_path):
    voxels = some_voxels((5, 6, 7, 3))
    path = write_nifti(tmp_path / "scan.nii.gz", voxels)
    np.testing.assert_array_equal(read_volume(path, volume_index=2).array, voxels[..., 2])
    with pytest.raises(VolumeError, match="found 3, expected 0 to 2"):
        read_volume(path, volume_index=3)


def test_a_mask_is_read_where_it_is_asked_for(tmp_path):
    mask = (some_voxels() > 500).astype("u1")
    path = write_nifti(tmp_path / "mask.nii.gz", mask)
    np.testing.assert_array_equal(read_volume(path, allow_constant=True).array, mask)


def test_micrometres_are_read_as_other_software_reads_them_with_a_warning(tmp_path):
    volume = read_volume(write_nifti(tmp_path / "scan.nii", fields={"xyzt_units": 3}))
    assert volume.spacing_mm == (1.5, 1.25, 2.0)
    assert "micrometres" in volume.warnings[0]


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_what_is_written_is_read_back_exactly(tmp_path, name):
    array = np.random.default_rng(1).normal(size=(5, 1, 7)).astype(np.float32)
    path = tmp_path / "new" / "folder" / name
    write_volume(path, array, AFFINE, description="SYNTHETIC T2")
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_array_equal(volume.affine, AFFINE)
    assert volume.warnings == ()


def test_a_written_header_leaves_nothing_to_guess(tmp_path):
    write_volume(tmp_path / "scan.nii.gz", some_voxels(), AFFINE, description="é" + 100 * "x")
    block = gzip.decompress((tmp_path / "scan.nii.gz").read_bytes())[:348]
    header = nibabel.Nifti1Header(block, check=True)
    assert header.get_data_dtype() == np.float32
    assert (header["scl_slope"], header["scl_inter"], header["vox_offset"]) == (1, 0, 352)
    assert (header["sform_code"], header["qform_code"]) == (2, 2)
    assert header.get_xyzt_units()[0] == "mm"
    assert bytes(header["descrip"]) == b"?" + 78 * b"x" + b"\0"


def test_the_same_volume_gives_the_same_bytes_under_any_name(tmp_path):
    for name in ("a.nii.gz", "another name.nii.gz"):
        write_volume(tmp_path / name, some_voxels(), AFFINE)
    first, second = sorted(tmp_path.iterdir())
    assert first.read_bytes() == second.read_bytes()


def test_a_sheared_affine_is_written_without_a_qform(tmp_path):
    sheared = AFFINE @ np.array([[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    write_volume(tmp_path / "scan.nii", some_voxels(), sheared)
    volume = read_volume(tmp_path / "scan.nii")
    np.testing.assert_allclose(volume.affine, sheared, rtol=1e-6)
    assert nibabel.load(tmp_path / "scan.nii").header["qform_code"] == 0


@pytest.mark.parametrize(
    ("array", "affine", "name", "reason"),
    [
        (np.full((3, 3, 3), np.nan), AFFINE, "scan.nii", "not finite"),
        (np.zeros((3, 3)), AFFINE, "scan.nii", "not a volume"),
        (np.zeros((3, 3, 0)), AFFINE, "scan.nii", "not a volume"),
        (np.zeros((3, 3, 3)), np.zeros((4, 4)), "scan.nii", "affine"),
        (np.zeros((3, 3, 3)), np.full((4, 4), np.inf), "scan.nii", "affine"),
        (np.zeros((3, 3, 3)), AFFINE, "scan.mgz", "does not say NIfTI"),
    ],
)
def test_what_cannot_be_stored_is_not_written(tmp_path, array, affine, name, reason):
    with pytest.raises(VolumeError, match=reason):
        write_volume(tmp_path / name, array, affine)
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=100, deadline=None)
@given(
    angles=st.tuples(*[st.floats(-3.1, 3.1)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 6)] * 3),
    flips=st.tuples(*[st.sampled_from([-1, 1])] * 3),
    order=st.permutations(range(3)),
    shape=st.tuples(*[st.integers(1, 9)] * 3),
)
def test_any_oblique_flipped_or_permuted_grid_survives_the_disk(tmp_path_factory, angles, spacing, flips, order, shape):
    affine = np.eye(4)
    turn = nibabel.eulerangles.euler2mat(*angles)
    affine[:3, :3] = (turn * np.array(spacing) * np.array(flips))[:, order]
    affine[:3, 3] = 100 * np.array(angles)
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    path = tmp_path_factory.mktemp("grid") / "scan.nii"
    write_volume(path, array, affine)
    volume = read_volume(path, allow_constant=True)
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(volume.affine, affine, rtol=1e-6, atol=1e-5)
    assert volume.warnings == ()


def test_equal_places_in_space_are_one_grid_whatever_the_order_of_axes():
    array = some_voxels((4, 5, 6), "<f4")
    volume = Volume(array, AFFINE)
    flipped = np.diag([-1.0, 1, 1, 1])
    flipped[0, 3] = 3
    turned = Volume(array[::-1].transpose(2, 0, 1), (AFFINE @ flipped)[:, [2, 0, 1, 3]])
    assert turned.orientation != volume.orientation
    assert grid_difference(volume, turned) is None


def test_a_grid_difference_says_what_differs():
    array = some_voxels((4, 5, 6), "<f4")
    shifted = AFFINE.copy()
    shifted[2, 3] += 5
    assert grid_difference(Volume(array, AFFINE), Volume(array, shifted)) == "the same corner lies up to 5.0 mm apart"
    assert grid_difference(Volume(array, AFFINE), Volume(array[:, :, :3], AFFINE)) == (
        "4x5x6 of 1.5x1.25x2 mm against 4x5x3 of 1.5x1.25x2 mm"
    )
