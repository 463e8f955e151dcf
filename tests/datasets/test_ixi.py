from __future__ import annotations

import email.message
import hashlib
import io
import tarfile
import threading
import urllib.request
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from unscanned.datasets.download import _StaySecure, https_where_served
from unscanned.datasets.ixi import CHECKSUMS, OFFICIAL_URL, fetch_ixi
from unscanned.errors import DatasetError, DownloadError, ResourceError, SettingsError
from unscanned.files import read_json

SUBJECTS = ("IXI002-Guys-0828", "IXI012-HH-1211", "IXI035-IOP-0873")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


class Site:
    """A small IXI site on this machine."""

    def __init__(self, folder: Path) -> None:
        self.checksums = {
            contrast: self._archive(folder / f"IXI-{contrast}.tar", contrast) for contrast in ("PD", "T2")
        }
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    @staticmethod
    def _archive(path: Path, contrast: str) -> str:
        with tarfile.open(path, "w") as tar:
            for subject in SUBJECTS:
                info = tarfile.TarInfo(f"{subject}-{contrast}.nii.gz")
                content = f"{subject} {contrast}".encode()
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "site"
    folder.mkdir()
    site = Site(folder)
    thread = threading.Thread(target=site.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield site
    site.server.shutdown()
    thread.join()
    site.server.server_close()


def test_the_scans_lie_in_one_flat_folder_for_each_contrast(site: Site, tmp_path: Path) -> None:
    out = fetch_ixi(tmp_path / "días 磁共振", base_url=site.url, checksums=site.checksums)
    for contrast in ("PD", "T2"):
        scans = {path.name: path.read_text() for path in (out / f"IXI-{contrast}").glob("*.nii.gz")}
        assert scans == {f"{subject}-{contrast}.nii.gz": f"{subject} {contrast}" for subject in SUBJECTS}


def test_the_result_is_read_as_pairs(site: Site, tmp_path: Path) -> None:
    from unscanned.datasets.pairs import find_pairs

    out = fetch_ixi(tmp_path / "ixi", base_url=site.url, checksums=site.checksums)
    pairs = find_pairs(out, source="PD", target="T2", layout="ixi")
    assert [pair.subject for pair in pairs] == ["IXI002", "IXI012", "IXI035"]
    assert pairs[1].target == out / "IXI-T2" / "IXI012-HH-1211-T2.nii.gz"


def test_the_licence_and_the_source_stand_beside_the_scans(site: Site, tmp_path: Path) -> None:
    out = fetch_ixi(tmp_path / "ixi", base_url=site.url, checksums=site.checksums)
    text = (out / "README.txt").read_text()
    assert "CC BY-SA 3.0" in text
    assert "https://brain-development.org/ixi-dataset/" in text
    assert read_json(out / "IXI-PD" / "fetched.json")["checksum"] == site.checksums["PD"]


def test_a_second_call_does_nothing_and_says_so(site: Site, tmp_path: Path) -> None:
    out = fetch_ixi(tmp_path / "ixi", base_url=site.url, checksums=site.checksums)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    labels: list[str] = []
    fetch_ixi(
        out,
        base_url="http://127.0.0.1:9",
        checksums=site.checksums,
        progress=lambda done, total, label: labels.append(label),
    )
    assert labels == ["IXI-PD: already in place", "IXI-T2: already in place"]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_progress_ends_at_the_whole_for_the_download_and_for_the_unpacking(site: Site, tmp_path: Path) -> None:
    last: dict[str, tuple[int, int]] = {}
    fetch_ixi(
        tmp_path / "ixi",
        contrasts=("PD",),
        base_url=site.url,
        checksums=site.checksums,
        progress=lambda done, total, label: last.update({label: (done, total)}),
    )
    length = (tmp_path / "site" / "IXI-PD.tar").stat().st_size
    unpacked = sum(len(f"{subject} PD") for subject in SUBJECTS)
    assert last == {"IXI-PD.tar": (length, length), "IXI-PD.tar: unpacking": (unpacked, unpacked)}


@pytest.mark.parametrize("keep", [True, False])
def test_the_archive_stays_or_goes_as_asked(site: Site, tmp_path: Path, keep: bool) -> None:
    out = fetch_ixi(tmp_path / "ixi", contrasts=("PD",), base_url=site.url, checksums=site.checksums, keep_archive=keep)
    assert (out / "IXI-PD.tar").exists() == keep
    assert (out / "IXI-PD" / "IXI012-HH-1211-PD.nii.gz").exists()


def test_an_archive_that_is_there_already_is_checked_and_unpacked_without_the_server(
    site: Site, tmp_path: Path
) -> None:
    out = tmp_path / "ixi"
    out.mkdir()
    (tmp_path / "site" / "IXI-PD.tar").rename(out / "IXI-PD.tar")
    fetch_ixi(out, contrasts=("PD",), base_url="http://127.0.0.1:9", checksums=site.checksums)
    assert len(list((out / "IXI-PD").glob("*.nii.gz"))) == len(SUBJECTS)


def test_what_was_fetched_before_a_failure_stays(site: Site, tmp_path: Path) -> None:
    (tmp_path / "site" / "IXI-T2.tar").unlink()
    out = tmp_path / "ixi"
    with pytest.raises(DownloadError, match="404"):
        fetch_ixi(out, base_url=site.url, checksums=site.checksums)
    assert len(list((out / "IXI-PD").glob("*.nii.gz"))) == len(SUBJECTS)
    assert not (out / "IXI-T2").exists()


def test_a_folder_of_the_users_own_is_not_touched(site: Site, tmp_path: Path) -> None:
    own = tmp_path / "ixi" / "IXI-PD" / "IXI012-HH-1211-PD.nii.gz"
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    with pytest.raises(DatasetError, match="Move it away"):
        fetch_ixi(tmp_path / "ixi", base_url=site.url, checksums=site.checksums)
    assert own.read_text() == "mine"
    assert list(own.parent.iterdir()) == [own]


def test_a_folder_in_which_a_scan_is_missing_is_not_taken_for_the_whole(site: Site, tmp_path: Path) -> None:
    out = fetch_ixi(tmp_path / "ixi", base_url=site.url, checksums=site.checksums)
    (out / "IXI-PD" / "IXI012-HH-1211-PD.nii.gz").unlink()
    with pytest.raises(DatasetError, match="not the whole of the archive"):
        fetch_ixi(out, base_url=site.url, checksums=site.checksums)


def test_an_archive_without_scans_of_the_contrast_is_refused(site: Site, tmp_path: Path) -> None:
    swapped = tmp_path / "site" / "IXI-PD.tar"
    swapped.write_bytes((tmp_path / "site" / "IXI-T2.tar").read_bytes())
    with pytest.raises(DatasetError, match="no scan of this contrast"):
        fetch_ixi(tmp_path / "ixi", base_url=site.url, checksums={"PD": site.checksums["T2"]}, contrasts=("PD",))
    assert not (tmp_path / "ixi" / "IXI-PD").exists()


def test_an_unknown_contrast_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="PD or T1 or T2"):
        fetch_ixi(tmp_path / "ixi", contrasts=("FLAIR",))
    assert not (tmp_path / "ixi").exists()


@pytest.mark.parametrize("base_url", ["ftp://example.org/IXI", "IXI", "http://[::1", "http://a b/", "http://x:99999/"])
def test_an_address_that_is_none_is_a_settings_error(tmp_path: Path, base_url: str) -> None:
    with pytest.raises(SettingsError, match="not an address"):
        fetch_ixi(tmp_path / "ixi", base_url=base_url)


def test_a_file_in_the_place_of_the_folder_is_a_resource_error(site: Site, tmp_path: Path) -> None:
    (tmp_path / "ixi").write_text("not a folder")
    with pytest.raises(ResourceError, match="cannot be written"):
        fetch_ixi(tmp_path / "ixi", base_url=site.url, checksums=site.checksums)


def test_the_published_checksums_are_pinned() -> None:
    assert CHECKSUMS == {
        "PD": "88ecd9d1fa33cb4a2278183b42ffd749",
        "T2": "e3140d78730ecdd32ba92da48c0a9aaa",
        "T1": "34901a0593b41dd19c1a1f746eac2d58",
    }
    assert OFFICIAL_URL.endswith("/brain-development/downloads/IXI")


def test_an_address_with_a_port_is_not_tried_over_https(site: Site) -> None:
    assert https_where_served(f"{site.url}/IXI-PD.tar", timeout_s=1) == f"{site.url}/IXI-PD.tar"


def test_http_is_used_where_https_does_not_answer() -> None:
    assert https_where_served("http://127.0.0.1/IXI-PD.tar", timeout_s=1) == "http://127.0.0.1/IXI-PD.tar"


def test_https_never_falls_back_to_http() -> None:
    request = urllib.request.Request("https://example.org/IXI-PD.tar")
    with pytest.raises(DownloadError, match="expected https"):
        _StaySecure().redirect_request(request, None, 302, "Found", {}, "http://example.org/IXI-PD.tar")


class Answer:
    """What a server says of an address, as `urllib` gives it."""

    def __init__(self, kind):
        self.headers = email.message.EmailMessage()
        self.headers["Content-Type"] = kind

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.mark.parametrize(
    ("answer", "scheme"),
    [
        (Answer("application/x-tar"), "https"),
        (Answer("text/html; charset=utf-8"), "http"),
        (OSError("refused"), "http"),
    ],
    ids=["the file", "a page for people", "no answer"],
)
def test_an_address_is_asked_for_by_https_where_the_server_has_the_file_there(monkeypatch, answer, scheme):
    asked = []

    class Opener:
        def open(self, request, timeout):
            asked.append((request.get_method(), request.full_url))
            if isinstance(answer, Exception):
                raise answer
            return answer

    monkeypatch.setattr("unscanned.datasets.download._OPENER", Opener())
    assert https_where_served("http://example.org/IXI-PD.tar") == f"{scheme}://example.org/IXI-PD.tar"
    assert asked == [("HEAD", "https://example.org/IXI-PD.tar")]
