"""The pages in a real browser: what they draw, what a click does, and which values they name."""

import hashlib
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
from browser import chromium, requests, show
from cohort import SHAPE, STD, head_phantom, write_cohort, write_oriented, write_synthetic
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

import unscanned.report
from unscanned.datasets.pairs import Pair
from unscanned.evaluation.baselines import Regression
from unscanned.evaluation.cases import load_images
from unscanned.evaluation.evaluate import evaluate
from unscanned.report.page import write_report
from unscanned.report.view import write_view
from unscanned.volumes.nifti import read_volume, write_volume

PANELS = ["PD (source)", "T2 (acquired)", "good", "good − T2", "poor", "poor − T2", "regression", "regression − T2"]

PIXELS = """
return [...document.querySelectorAll('.panel canvas')].map((canvas) => {
  const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  const colours = new Set();
  let stamped = 0;
  for (let at = 0; at < data.length; at += 4) {
    colours.add((data[at] << 16) | (data[at + 1] << 8) | data[at + 2]);
    if (data[at] === 255 && data[at + 1] === 209 && data[at + 2] === 102) stamped++;
  }
  return { colours: colours.size, stamped, picture: canvas.toDataURL() };
});
"""

VALUES = """
return {
  voxel: document.querySelector('.where').dataset.voxel.split(',').map(Number),
  values: [...document.querySelectorAll('.panel')].map((panel) => [
    panel.querySelector('b').textContent, Number(panel.querySelector('output').dataset.value),
  ]),
};
"""


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    root = tmp_path_factory.mktemp("cohort")
    raw, arms = write_cohort(root, ("01", "02", "03"), {"good": 0.02, "poor": 0.1})
    return evaluate(raw, arms, root / "evaluation", subjects=("02", "03"), training=("01",))


@pytest.fixture(scope="module")
def report(evaluated, tmp_path_factory):
    return write_report(evaluated.folder, tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture(scope="module")
def images(evaluated):
    entry = evaluated.content.cases[0]
    return load_images(
        Pair(entry.subject, entry.session, Path(entry.source), Path(entry.target)),
        {arm: Path(path) for arm, path in entry.synthetic.items()},
        regression=Regression.from_curve(evaluated.content.regression),
    )


def pointer(browser, panel, x, y, kind="mousePressed", **more):
    """Send a pointer to a place in a panel's canvas, each as a share of its size."""
    box = browser.execute_script(
        "const canvas = document.querySelectorAll('.panel canvas')[arguments[0]];"
        "canvas.scrollIntoView({ block: 'center', behavior: 'instant' });"
        "const { left, top, width, height } = canvas.getBoundingClientRect(); return [left, top, width, height]",
        panel,
    )
    place = {"x": box[0] + x * box[2], "y": box[1] + y * box[3]}
    browser.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": kind, **place, **more})


def settle(browser):
    browser.execute_async_script("const done = arguments[0]; setTimeout(() => requestAnimationFrame(done), 400)")


def all_differ(before, after):
    return all(one["picture"] != other["picture"] for one, other in zip(before, after, strict=True))


def click(browser, panel, x, y):
    for kind in ("mousePressed", "mouseReleased"):
        pointer(browser, panel, x, y, kind, button="left", clickCount=1)
    settle(browser)


def slide(browser, *voxel):
    """Move the sliders to a voxel in RAS+, and take the pointer away."""
    for plane, index in zip(("sagittal", "coronal", "axial"), voxel, strict=True):
        browser.execute_script(
            "const slider = document.querySelector(`[data-plane=${arguments[0]}]`); slider.value = arguments[1];"
            "slider.dispatchEvent(new Event('input'))",
            plane,
            index,
        )
    browser.execute_script("document.querySelector('.panel canvas').dispatchEvent(new Event('pointerleave'))")
    settle(browser)


def test_every_image_is_drawn_and_every_synthetic_one_is_stamped_inside_its_canvas(browser, report):
    show(browser, report)
    names = browser.execute_script("return [...document.querySelectorAll('.panel b')].map((name) => name.textContent)")
    assert names == PANELS
    pixels = browser.execute_script(PIXELS)
    assert all(panel["colours"] > 50 for panel in pixels)
    assert [name for name, panel in zip(names, pixels, strict=True) if panel["stamped"] > 20] == PANELS[2:6]
    assert len({hashlib.sha256(panel["picture"].encode()).hexdigest() for panel in pixels}) == len(PANELS)


def test_the_page_asks_for_nothing_and_the_console_stays_empty(browser, report):
    browser.get_log("browser")
    show(browser, report)
    assert requests(browser) == [report.as_uri()]
    assert browser.get_log("browser") == []


def test_a_click_moves_the_crosshair_of_all_images(browser, report):
    show(browser, report)
    before, start = browser.execute_script(PIXELS), browser.execute_script(VALUES)["voxel"]
    click(browser, 2, 0.1, 0.3)
    after, voxel = browser.execute_script(PIXELS), browser.execute_script(VALUES)["voxel"]
    # The first picture is the axial one: the patient's right, in front of the centre, in the same slice.
    assert voxel[0] > start[0] + 3
    assert voxel[1] > start[1] + 3
    assert voxel[2] == start[2]
    assert all_differ(before, after)


@pytest.mark.parametrize("place", [(0.13, 0.2), (0.17, 0.45), (0.5, 0.2), (0.85, 0.25)])
def test_the_values_under_the_cursor_are_those_of_the_volumes(browser, report, images, place):
    show(browser, report)
    pointer(browser, 1, *place, kind="mouseMoved")
    told = browser.execute_script(VALUES)
    at = tuple(told["voxel"])
    expected = {"PD (source)": images.source[at], "T2 (acquired)": images.target[at]}
    expected |= {arm: images.arms[arm][at] for arm in ("good", "poor", "regression")}
    error = float(re.search(r"within \\u00b1([\d.e-]+)", report.read_text())[1])
    assert error < 0.001
    for name, value in told["values"]:
        if name in expected:
            assert value == pytest.approx(expected[name], abs=1.05 * error)
        else:
            arm = name.removesuffix(" − T2")
            assert value == pytest.approx((expected[arm] - images.target[at]) / STD, abs=2.1 * error / STD)


def test_the_value_of_the_file_stands_beside_that_in_unit_scale(browser, report, evaluated):
    show(browser, report)
    pointer(browser, 1, 0.17, 0.45, kind="mouseMoved")
    voxel = browser.execute_script(VALUES)["voxel"]
    volume = read_volume(evaluated.content.cases[0].target)
    assert volume.orientation == "LPS"
    stored = volume.array[SHAPE[0] - 1 - voxel[0], SHAPE[1] - 1 - voxel[1], voxel[2]]
    text = browser.execute_script("return document.querySelectorAll('.panel output')[1].textContent")
    assert float(re.search(r"([\d.]+) in the file", text)[1]) == pytest.approx(stored, abs=0.2)


def test_the_wheel_and_the_sliders_go_through_the_slices(browser, report):
    show(browser, report)
    start = browser.execute_script(VALUES)["voxel"]
    pointer(browser, 0, 0.17, 0.4, kind="mouseMoved")
    pointer(browser, 0, 0.17, 0.4, kind="mouseWheel", deltaX=0, deltaY=-100)
    settle(browser)
    assert browser.execute_script(VALUES)["voxel"][2] == start[2] + 1
    pointer(browser, 0, 0.99, 0.99, kind="mouseMoved")
    settle(browser)
    assert browser.execute_script("return document.querySelector('[data-plane=axial]').value") == str(start[2] + 1)
    slide(browser, 7, 11, 5)
    assert browser.execute_script(VALUES)["voxel"] == [7, 11, 5]


def test_the_picture_lies_where_the_crosshair_says(browser, report):
    show(browser, report)
    slide(browser, 8, 24, 12)  # in the block that marks the patient's left
    grey = (
        "const canvas = document.querySelectorAll('.panel canvas')[1], wide = canvas.width * 80 / 256;"
        "const at = [arguments[0] * wide, arguments[1] * wide * 96 / 80];"
        "return [...canvas.getContext('2d').getImageData(at[0] + 5, at[1] + 5, 1, 1).data].slice(0, 3)"
    )
    left = browser.execute_script(grey, 1 - 8.5 / 40, 1 - 24.5 / 48)
    right = browser.execute_script(grey, 8.5 / 40, 1 - 24.5 / 48)
    assert min(left) > 240 > 150 > max(right) > 30


@pytest.mark.parametrize("control", ["window", "level", "limit", "zoom"])
def test_window_level_and_zoom_change_the_pictures(browser, report, control):
    show(browser, report)
    settle(browser)
    before = browser.execute_script(PIXELS)
    browser.execute_script(
        "const input = document.querySelector(`[name=${arguments[0]}]`); input.value = Number(input.value) * 1.5 + 60;"
        "input.dispatchEvent(new Event('input'))",
        control,
    )
    settle(browser)
    after = browser.execute_script(PIXELS)
    changed = [one["picture"] != other["picture"] for one, other in zip(before, after, strict=True)]
    differences = [" − " in name for name in PANELS]
    assert changed == {"zoom": [True] * len(PANELS), "limit": differences}.get(control, [not d for d in differences])


def test_another_case_and_fewer_images_can_be_chosen(browser, evaluated, tmp_path):
    both = write_report(
        evaluated.folder, tmp_path / "report.html", cases=[entry.case for entry in evaluated.content.cases]
    )
    show(browser, both)
    first = browser.execute_script(PIXELS)
    browser.execute_script(
        "const choice = document.querySelector('[name=case]'); choice.value = '1';"
        "choice.dispatchEvent(new Event('change'))"
    )
    second = first
    until = time.monotonic() + 10
    while not (all_differ(first, second) and all(panel["colours"] > 50 for panel in second)):
        assert time.monotonic() < until
        settle(browser)
        second = browser.execute_script(PIXELS)
    browser.execute_script("document.querySelectorAll('.chips input')[1].click()")
    settle(browser)
    shown = "return [...document.querySelectorAll('.panel')].map((panel) => panel.getClientRects().length > 0)"
    assert browser.execute_script(shown) == [True, False] + [True] * 6


def test_where_room_was_short_only_the_head_has_values(browser, evaluated, images, tmp_path):
    page = write_report(evaluated.folder, tmp_path / "report.html", limit_mb=0.09)
    show(browser, page)
    error = float(re.search(r"within \\u00b1([\d.e-]+)", page.read_text())[1])
    inside = 0
    for x in (0.01, 0.08, 0.12, 0.16, 0.2):
        pointer(browser, 1, x, 0.35, kind="mouseMoved")
        told = browser.execute_script(VALUES)
        at = tuple(told["voxel"])
        text = browser.execute_script("return document.querySelectorAll('.panel output')[1].textContent")
        if images.head[at]:
            inside += 1
            assert dict(told["values"])["T2 (acquired)"] == pytest.approx(float(images.target[at]), abs=1.05 * error)
        else:
            assert text == "–"
    assert 0 < inside < 5


def test_a_phone_has_no_horizontal_scroll(browser, report):
    show(browser, report, width=390)
    assert browser.execute_script("return document.documentElement.scrollWidth") == 390


def test_the_page_is_dark_where_the_reader_wants_it(browser, report):
    colour = "return getComputedStyle(document.body).backgroundColor"
    show(browser, report)
    assert browser.execute_script(colour) == "rgb(255, 255, 255)"
    show(browser, report, dark=True)
    assert max(map(int, re.findall(r"\d+", browser.execute_script(colour)))) < 50


def test_on_paper_pictures_stand_in_the_place_of_the_viewer(browser, report):
    shown = "return ['.viewer', '.still'].map((name) => document.querySelector(name).getClientRects().length > 0)"
    show(browser, report)
    assert browser.execute_script(shown) == [True, False]
    show(browser, report, media="print")
    assert browser.execute_script(shown) == [False, True]


def test_without_webgl_the_pictures_stand_and_the_page_says_so(report, tmp_path):
    with chromium(tmp_path / "profile", "--disable-3d-apis") as browser:
        show(browser, report)
        assert "no WebGL 2" in browser.execute_script("return document.querySelector('.viewer-note').textContent")
        assert browser.execute_script("return document.querySelector('.still img').clientHeight") > 300
        assert browser.execute_script("return document.querySelector('.panels').clientHeight") == 0


def test_files_on_different_grids_are_linked_by_their_place_in_the_world(browser, tmp_path):
    source, target = head_phantom(5)
    write_oriented(tmp_path / "scan_PDw.nii.gz", np.round(source), "LPS")
    write_oriented(tmp_path / "scan_T2w.nii.gz", target[2:, :, 3:], "PIR", shift_mm=(2.0, 0.0, 5.25))
    write_synthetic(tmp_path / "made", "sub-01", target / 700)
    files = [tmp_path / "scan_PDw.nii.gz", tmp_path / "scan_T2w.nii.gz", *(tmp_path / "made").rglob("*.nii.gz")]
    page = write_view(files, tmp_path / "view.html")
    show(browser, page)
    pixels = browser.execute_script(PIXELS)
    assert all(panel["colours"] > 50 for panel in pixels)
    assert [panel["stamped"] > 20 for panel in pixels] == [False, False, True]
    click(browser, 0, 0.13, 0.4)
    told = browser.execute_script(VALUES)
    volumes = [read_volume(path) for path in files]
    mm = volumes[0].affine @ [*told["voxel"], 1]
    for number, ((_, value), volume) in enumerate(zip(told["values"], volumes, strict=True)):
        at = tuple(np.round(np.linalg.inv(volume.affine) @ mm)[:3].astype(int))
        error = 0.0 if number == 0 else 0.5 * float(np.ptp(volume.array)) / 4095
        assert value == pytest.approx(float(volume.array[at]), abs=1.01 * error)


def test_the_grey_under_the_cursor_is_that_of_the_value_told_on_an_oblique_grid(browser, tmp_path):
    random = np.random.default_rng(0)
    array = gaussian_filter(random.standard_normal((50, 40, 30)), 3).astype(np.float32)
    for name, axes in (("lps", np.diag([-1, -1, 1])), ("pir", np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]]))):
        affine = np.eye(4)
        turned = Rotation.from_euler("xyz", [17, -12, 23], degrees=True).as_matrix()
        affine[:3] = np.column_stack([turned @ axes @ np.diag([1.0, 1.5, 2.0]), [5, -7, 9]])
        write_volume(tmp_path / f"{name}.nii.gz", array, affine)
    show(browser, write_view([tmp_path / "lps.nii.gz", tmp_path / "pir.nii.gz"], tmp_path / "view.html"))
    settle(browser)
    facts = json.loads(browser.execute_script("return document.getElementById('viewer-facts').textContent"))
    for panel, image in enumerate(facts["cases"][0]["images"]):
        low, high = image["window"]
        wrong = []
        for x, y in random.random((25, 2)):
            pointer(browser, panel, x, y, kind="mouseMoved")
            grey, value = browser.execute_script(
                "const panel = document.querySelectorAll('.panel')[arguments[0]];"
                "const canvas = panel.querySelector('canvas');"
                "const at = [arguments[1] * canvas.width, arguments[2] * canvas.height].map(Math.floor);"
                "const pixel = canvas.getContext('2d').getImageData(...at, 1, 1).data;"
                "const isGrey = pixel[0] === pixel[1] && pixel[1] === pixel[2] && pixel[0] > 5;"
                "return [isGrey ? pixel[0] : null, panel.querySelector('output').dataset.value]",
                panel,
                x,
                y,
            )
            if grey is not None and value:
                wrong.append(abs(grey - np.clip(255 * (float(value) - low) / (high - low), 0, 255)))
        assert len(wrong) > 6
        assert np.median(wrong) < 6  # the picture is interpolated, the value is that of the nearest voxel


def test_the_viewers_software_is_what_its_readme_says():
    folder = Path(unscanned.report.__file__).parent / "niivue"
    told = (folder / "README.md").read_text(encoding="utf-8")
    digest = hashlib.sha256((folder / "niivue.umd.js").read_bytes()).hexdigest()
    assert digest in told
    assert "0.69.0" in told
    assert "Copyright (c) 2021, Niivue" in (folder / "LICENSES.txt").read_text(encoding="utf-8")


def test_the_licences_are_in_the_page_and_the_facts_cannot_close_their_script(report):
    page = report.read_text(encoding="utf-8")
    assert "Copyright (c) 2021, Niivue" in page
    facts = re.search(r'<script type="application/json" id="viewer-facts">(.*?)</script>', page)[1]
    assert "<" not in facts
    assert json.loads(facts)["cases"][0]["name"] == "sub-02"
