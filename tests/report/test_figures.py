import io

import numpy as np
import pytest
from cohort import SPACING_MM, head_phantom
from PIL import Image

from unscanned.errors import DatasetError
from unscanned.formats.sidecar import STAMP
from unscanned.report.figures import case_figure, patch_sheet, patch_starts, planes_figure, strip
from unscanned.volumes.intensity import head_mask
from unscanned.volumes.planes import slice_image


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def unit_phantom():
    source, target = (array / 1000 for array in head_phantom(0))
    return source, target, head_mask(target)


def brightest(image):
    rows, columns = np.nonzero(image == image.max())
    return rows.mean() / (image.shape[0] - 1), columns.mean() / (image.shape[1] - 1)


def marked(axis, end, shape=(10, 12, 8)):
    """A volume whose only bright voxels lie at one end of an axis of RAS+: 0 is left, posterior or inferior."""
    volume = np.zeros(shape)
    middle = [slice(length // 2 - 1, length // 2 + 1) for length in shape]
    middle[axis] = slice(-2, None) if end else slice(0, 2)
    volume[tuple(middle)] = 1
    return volume


@pytest.mark.parametrize("plane", ["axial", "coronal"])
def test_the_patients_left_is_on_the_viewers_right(plane):
    index = {"axial": 4, "coronal": 6}[plane]
    assert brightest(slice_image(marked(0, end=0), plane, index))[1] > 0.8
    assert brightest(slice_image(marked(0, end=1), plane, index))[1] < 0.2


def test_the_front_is_up_in_axial_and_left_in_sagittal_slices():
    assert brightest(slice_image(marked(1, end=1), "axial", 4))[0] < 0.2
    assert brightest(slice_image(marked(1, end=1), "sagittal", 5))[1] < 0.2


@pytest.mark.parametrize(("plane", "index"), [("coronal", 6), ("sagittal", 5)])
def test_the_top_of_the_head_is_up(plane, index):
    assert brightest(slice_image(marked(2, end=1), plane, index))[0] < 0.2


def test_a_mark_on_the_patients_left_shows_on_the_right_half_of_the_browsing_strip():
    _, target, head = unit_phantom()
    made = strip(target, head, spacing_mm=SPACING_MM, white=1.0, width=120)
    mosaic = np.asarray(Image.open(io.BytesIO(made.image)).convert("L")).astype(int)
    index = 12
    row, column = divmod(index, made.columns)
    tile = mosaic[
        row * made.tile_height : (row + 1) * made.tile_height, column * made.tile_width : (column + 1) * made.tile_width
    ]
    middle = tile[made.tile_height * 2 // 5 : made.tile_height * 3 // 5]
    left, right = middle[:, : made.tile_width // 3], middle[:, -made.tile_width // 3 :]
    assert right.max() > 240 > left.max() + 50


def test_a_strip_holds_every_axial_slice():
    _, target, head = unit_phantom()
    made = strip(target, head, spacing_mm=SPACING_MM, white=1.0, width=60)
    assert made.slices == target.shape[2] <= made.columns * made.rows
    assert Image.open(io.BytesIO(made.image)).size == (made.columns * made.tile_width, made.rows * made.tile_height)


def test_slices_keep_their_shape_in_mm():
    head = np.ones((20, 40, 10), bool)
    made = strip(head.astype(float), head, spacing_mm=(2.0, 1.0, 5.0), white=1.0, width=80)
    assert made.tile_height == pytest.approx(made.tile_width, abs=1)


@pytest.mark.parametrize("width", [80, 112, 144])
def test_every_synthetic_slice_of_a_strip_is_stamped_whole_and_no_acquired_one(width):
    head = np.ones((40, 40, 9), bool)
    dark = np.full(head.shape, 0.001)
    acquired, made = (
        strip(dark, head, spacing_mm=(1.0, 1.0, 1.0), white=1.0, width=width, synthetic=synthetic)
        for synthetic in (False, True)
    )
    assert np.asarray(Image.open(io.BytesIO(acquired.image)).convert("L")).max() < 20
    mosaic = np.asarray(Image.open(io.BytesIO(made.image)).convert("L"))
    for index in range(made.slices):
        row, column = divmod(index, made.columns)
        bottom = mosaic[
            row * made.tile_height + made.tile_height * 4 // 5 : (row + 1) * made.tile_height,
            column * made.tile_width : (column + 1) * made.tile_width,
        ]
        assert bottom.max() > 140
        assert bottom[:, 3:9].max() > 60
        assert max(bottom[:, 0].max(), bottom[:, -1].max()) < 40


def test_the_stamp_says_what_it_must():
    assert STAMP == "SYNTHETIC - NOT FOR DIAGNOSIS"


def test_the_case_figure_stamps_the_arms_and_only_them():
    source, target, head = unit_phantom()
    options = {"spacing_mm": SPACING_MM, "contrasts": ("PD", "T2"), "std": 0.25}

    def amber(png):
        picture = pixels(png)
        return np.count_nonzero((picture[..., 0] > 200) & (abs(picture[..., 1] - 200) < 30) & (picture[..., 2] < 140))

    none, one, two = (
        amber(case_figure(target, source, dict.fromkeys(arms, target), head, **options)) for arms in ("", "a", "ab")
    )
    # The few amber pixels that are always there belong to the colour bar.
    assert one - none > 300
    assert two - none == pytest.approx(2 * (one - none), rel=0.1)


def test_the_case_figure_shows_less_colour_where_the_difference_is_smaller():
    source, target, head = unit_phantom()
    noise = np.random.default_rng(0).standard_normal(target.shape) * head
    png = case_figure(
        target, source, {"near": target + 0.01 * noise, "far": target + 0.2 * noise}, head,
        spacing_mm=SPACING_MM, contrasts=("PD", "T2"), std=0.25,
    )  # fmt: skip
    picture = pixels(png)
    column = (picture.shape[1] - 90) // 4
    colour = picture.max(axis=2) - picture.min(axis=2)
    near, far = colour[:, column : 2 * column].mean(), colour[:, 2 * column : 3 * column].mean()
    assert far > 2 * near


def test_the_case_figure_can_do_without_a_source_and_takes_any_name():
    _, target, head = unit_phantom()
    png = case_figure(
        target, None, {"<b>$x_{$ a very long name of an arm indeed": target}, head,
        spacing_mm=SPACING_MM, contrasts=("PD", "T2"), std=0.25,
    )  # fmt: skip
    assert pixels(png).shape[0] > 300


def test_the_patches_are_32_different_ones_inside_the_head_and_always_the_same():
    head = np.zeros((224, 224, 128), bool)
    head[30:200, 20:210, 5:120] = True
    starts = patch_starts(head)
    assert len(set(starts)) == len(starts) == 32
    assert starts == patch_starts(head)
    for i, j, k in starts:
        assert head[i : i + 32, j : j + 32, k : k + 32].mean() >= 0.5
        assert i % 32 == j % 32 == k % 32 == 0
    assert all(len({start[axis] for start in starts}) > 1 for axis in range(3))


@pytest.mark.parametrize("shape", [(40, 48, 24), (9, 60, 60), (20, 20, 20)])
def test_a_small_head_has_as_many_patches_as_it_can(shape):
    head = np.ones(shape, bool)
    starts = patch_starts(head)
    assert 1 <= len(starts) <= 32
    png = patch_sheet(np.random.default_rng(0).random(shape), head, spacing_mm=(1.0, 1.0, 1.0))
    assert pixels(png).std() > 10


def test_an_empty_head_is_refused():
    with pytest.raises(DatasetError, match="empty"):
        patch_starts(np.zeros((40, 40, 40), bool))


def test_volumes_on_different_grids_stand_side_by_side_and_only_synthetic_ones_are_stamped():
    _, target, _ = unit_phantom()
    shown = [("a scan", target, SPACING_MM, (0.0, 1.0)), ("a part", target[::2], (4.0, 2.0, 3.5), (0.0, 1.0))]
    plain = pixels(planes_figure([(*each, False) for each in shown]))
    stamped = pixels(planes_figure([(*each, synthetic) for each, synthetic in zip(shown, (False, True), strict=True)]))
    half = plain.shape[1] // 2
    assert np.array_equal(plain[:, :half], stamped[:, :half])
    assert not np.array_equal(plain[:, half:], stamped[:, half:])
