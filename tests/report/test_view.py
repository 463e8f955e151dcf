import re
import stat

import numpy as np
import pytest
from cohort import head_phantom, write_oriented, write_synthetic

from unscanned.errors import SettingsError, VolumeError
from unscanned.report.view import write_view
from unscanned.volumes.nifti import STAMP, write_volume


@pytest.fixture
def scan(tmp_path):
    write_oriented(tmp_path / "sub-01" / "sub-01_T2w.nii.gz", head_phantom(0)[1])
    return tmp_path / "sub-01" / "sub-01_T2w.nii.gz"


@pytest.fixture
def browser(tmp_path, monkeypatch):
    """A browser that only notes what it was asked to open."""
    program = tmp_path / "browser"
    program.write_text(f'#!/bin/sh\necho "$1" >> {tmp_path / "opened"}\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("BROWSER", f"{program} %s")
    monkeypatch.setattr("webbrowser._tryorder", None)
    return tmp_path / "opened"


def test_the_page_names_its_files_their_grids_and_the_stamp_of_synthetic_ones(scan, tmp_path):
    write_synthetic(tmp_path / "made", "sub-01", head_phantom(0)[1] / 700)
    made = next((tmp_path / "made").rglob("*.nii.gz"))
    page = write_view([scan, made], tmp_path / "view.html").read_text(encoding="utf-8")
    assert "SYNTHETIC - NOT FOR DIAGNOSIS" in page
    assert "40 × 48 × 24" in page
    assert "2 × 2 × 3.5" in page
    assert page.count("data:image/png") == 1
    assert not re.search(r'(src|href)="(?!data:image/|#)', page)


def test_a_synthetic_file_under_another_name_has_its_stamp(tmp_path):
    write_volume(tmp_path / "t2.nii.gz", head_phantom(0)[1], np.eye(4), description=STAMP)
    page = write_view([tmp_path / "t2.nii.gz"], tmp_path / "view.html").read_text(encoding="utf-8")
    assert STAMP in page


def test_files_of_one_name_are_told_apart_by_their_folders(scan, tmp_path):
    write_oriented(tmp_path / "other" / "sub-01_T2w.nii.gz", head_phantom(1)[1])
    page = write_view([scan, tmp_path / "other" / "sub-01_T2w.nii.gz"], tmp_path / "view.html").read_text("utf-8")
    assert "<title>sub-01/sub-01_T2w, other/sub-01_T2w</title>" in page


def test_a_mask_can_be_looked_at(tmp_path):
    write_oriented(tmp_path / "mask.nii.gz", (head_phantom(0)[1] > 100).astype(np.float32))
    assert "Values are exact." in write_view([tmp_path / "mask.nii.gz"], tmp_path / "view.html").read_text("utf-8")


def test_a_volume_that_has_no_room_is_named_and_its_picture_stands(scan, tmp_path):
    page = write_view([scan, scan], tmp_path / "view.html", limit_mb=0.01).read_text("utf-8")
    assert "Left out of the viewer: sub-01/sub-01_T2w, sub-01/sub-01_T2w. All volumes would take" in page
    assert 'class="viewer"' not in page
    assert "data:image/png" in page


def test_nothing_is_written_without_a_file_or_with_a_damaged_one(scan, tmp_path):
    with pytest.raises(SettingsError, match="no file to show"):
        write_view([], tmp_path / "view.html")
    scan.write_bytes(scan.read_bytes()[:4000])
    with pytest.raises(VolumeError, match=r"damaged|cut short"):
        write_view([scan], tmp_path / "view.html")
    assert not (tmp_path / "view.html").exists()


def test_the_command_opens_the_page_unless_told_not_to_or_without_a_display(cli, scan, browser, tmp_path, monkeypatch):
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    page = tmp_path / "view.html"
    done = cli("view", scan, "-o", page)
    assert (done.returncode, done.stdout.strip()) == (0, str(page))
    assert not browser.exists()
    monkeypatch.setenv("DISPLAY", ":99")
    assert cli("view", scan, "-o", page, "--no-open").returncode == 0
    assert not browser.exists()
    assert cli("view", scan, "-o", page).returncode == 0
    assert browser.read_text().strip() == page.as_uri()


@pytest.mark.parametrize("limit", ["0", "1e400", "nan", "-1"])
def test_a_room_that_no_page_can_have_is_refused(cli, scan, tmp_path, limit):
    done = cli("view", scan, "-o", tmp_path / "view.html", "--limit-mb", limit, "--no-open")
    assert done.returncode == 2
    assert "bug" not in done.stderr
    assert not (tmp_path / "view.html").exists()
    with pytest.raises(SettingsError, match="limit_mb"):
        write_view([scan], tmp_path / "view.html", limit_mb=float(limit))
