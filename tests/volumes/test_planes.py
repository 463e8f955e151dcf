"""The picture of a volume in a notebook."""

import io

import numpy as np
import pytest
from PIL import Image

from unscanned.volumes.nifti import Volume, read_volume, write_volume
from unscanned.volumes.orientation import from_ras
from unscanned.volumes.planes import three_planes


def grey(png):
    return np.asarray(Image.open(io.BytesIO(png))).astype(int)


def axial_affine(spacing_mm=(4.0, 4.0, 4.0), order=(0, 1, 2), signs=(1, 1, 1)):
    """An affine whose voxel axes run along the world axes of `order`, in the directions of `signs`."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
        affine[world, axis] = sign * spacing_mm[world]
    return affine


def head_with_a_mark():
    """A grey ball in RAS+ with a bright spot on the patient's left, in the middle plane of j and k."""
    i, j, k = np.meshgrid(*(np.arange(length) - (length - 1) / 2 for length in (40, 48, 32)), indexing="ij")
    array = 100.0 * (i**2 + j**2 + k**2 < 15**2)
    array[5:12, 20:28, 12:20] = 200  # i grows to the right
    return array.astype(np.float32)


@pytest.mark.parametrize(
    ("order", "signs"), [((0, 1, 2), (1, 1, 1)), ((2, 0, 1), (-1, 1, -1)), ((1, 2, 0), (1, -1, -1))]
)
def test_the_picture_is_the_same_however_the_file_stores_its_axes(order, signs):
    array, plain = head_with_a_mark(), axial_affine()
    affine = axial_affine(order=order, signs=signs)
    stored = from_ras(array, affine)
    assert three_planes(stored, affine, caption="x") == three_planes(array, plain, caption="x")


def test_the_patients_left_is_on_the_viewers_right_of_the_axial_plane():
    picture = grey(three_planes(head_with_a_mark(), axial_affine(), caption=""))
    axial = picture[30:-30, 14 : 40 * 288 // 48 - 14]  # without the letters
    assert np.nonzero(axial > 250)[1].mean() > 0.6 * axial.shape[1]


def test_planes_have_the_proportions_of_space():
    array = head_with_a_mark()
    height, width = grey(three_planes(array, axial_affine((1, 1, 3)), caption="")).shape
    scale = 288 / (3 * 32)  # the field is 40 x 48 x 96 mm
    assert (height, width) == (288 + 20, round(40 * scale) * 2 + round(48 * scale))


def test_a_synthetic_volume_says_so_in_every_plane():
    array, affine = head_with_a_mark(), axial_affine()
    plain, stamped = (grey(three_planes(array, affine, caption="", synthetic=value)) for value in (False, True))
    changed = np.flatnonzero((plain != stamped).any(0))
    for left, width in ((0, 240), (240, 240), (480, 288)):
        inside = changed[(changed >= left) & (changed < left + width)]
        assert len(inside) > 0.8 * width


@pytest.mark.parametrize("array", [np.zeros((8, 9, 10)), np.full((8, 9, 10), -3.0), np.ones((1, 1, 200))])
def test_a_volume_without_a_head_is_shown_too(array):
    assert grey(three_planes(array.astype(np.float32), np.eye(4), caption="empty")).ndim == 2


@pytest.mark.filterwarnings("error")
def test_voxels_that_are_not_finite_are_shown_as_air():
    array = head_with_a_mark()
    expected = three_planes(array, axial_affine(), caption="")
    array[array == 0] = np.nan
    array[0, 0, 0] = -np.inf
    assert three_planes(array, axial_affine(), caption="") == expected


def test_negative_voxels_are_not_all_black():
    array = head_with_a_mark() - 100
    picture = grey(three_planes(array, axial_affine(), caption=""))
    assert 80 < picture[144, 120] < 250


def test_a_volume_says_what_it_is_in_a_line(tmp_path):
    write_volume(tmp_path / "sub-01_T2w.nii.gz", head_with_a_mark(), axial_affine())
    volume = read_volume(tmp_path / "sub-01_T2w.nii.gz")
    assert repr(volume) == "Volume(40 x 48 x 32 voxels of 4 x 4 x 4 mm, RAS, sub-01_T2w.nii.gz)"
    assert Image.open(io.BytesIO(volume._repr_png_())).format == "PNG"


def test_a_synthetic_volume_is_still_known_after_it_was_written_and_read(tmp_path):
    made = Volume(head_with_a_mark(), axial_affine(), synthetic=True)
    made.save(tmp_path / "made.nii.gz")
    found = read_volume(tmp_path / "made.nii.gz")
    assert found.synthetic
    assert repr(found).startswith("Volume(synthetic, 40 x 48 x 32")
    assert found._repr_png_() != Volume(found.array, found.affine, found.path)._repr_png_()

    Volume(made.array, made.affine).save(tmp_path / "plain.nii.gz")
    assert not read_volume(tmp_path / "plain.nii.gz").synthetic
