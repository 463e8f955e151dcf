"""Section B of docs/reliability.md: downloads that break and archives that attack."""

from __future__ import annotations

import hashlib
import io
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from server import Answer, Misbehaving

from unscanned.datasets.archive import unpack_tar
from unscanned.datasets.download import download
from unscanned.datasets.ixi import fetch_ixi
from unscanned.errors import BusyError, DatasetError, DownloadError, ResourceError, SettingsError

SCAN = "IXI012-HH-1211-PD.nii.gz"
OTHER_SCAN = "IXI013-HH-1212-PD.nii.gz"


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def random_bytes(length: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(length)


CONTENT = random_bytes(300_000)
QUICK = {"idle_timeout_s": 5.0, "backoff_s": 0.001}


def get(server: Misbehaving, path: Path, *, checksum: str = md5(CONTENT), **changes: object) -> None:
    download(f"{server.url}/file", path, checksum=checksum, **{**QUICK, **changes})  # type: ignore[arg-type]


def tar_of(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def member(name: str, content: bytes = b"", **facts: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in facts.items():
        setattr(info, key, value)
    return info, content


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


# B1: the connection


@pytest.mark.parametrize("cut", [0, 1, 65_536, len(CONTENT) - 1])
def test_b1_a_connection_that_breaks_off_is_resumed_where_it_broke(path: Path, cut: int) -> None:
    with Misbehaving(CONTENT, [Answer(cut=cut), Answer()]) as server:
        get(server, path)
    assert path.read_bytes() == CONTENT
    assert server.requests[1].get("Range") == (f"bytes={cut}-" if cut else None)
    assert server.requests[1].get("If-Range") == ('"1"' if cut else None)
    assert list(path.parent.iterdir()) == [path]


def test_b1_a_server_that_breaks_off_each_time_is_given_up_after_five_tries_and_the_part_is_kept(path: Path) -> None:
    with (
        Misbehaving(CONTENT, [Answer(cut=10_000)]) as server,
        pytest.raises(DownloadError, match="run the same command"),
    ):
        get(server, path)
    assert len(server.requests) == 5
    assert not path.exists()
    assert path.with_name("file.part").read_bytes() == CONTENT[:50_000]


def test_b1_the_tries_count_failures_in_a_row_so_a_long_download_may_break_often(path: Path) -> None:
    content = random_bytes(8 * 1024**2)
    with Misbehaving(content, [Answer(cut=1024**2)]) as server:
        get(server, path, checksum=md5(content), tries=2)
    assert path.read_bytes() == content
    assert len(server.requests) == 8


def test_b1_the_rest_is_fetched_by_a_later_call(path: Path) -> None:
    with Misbehaving(CONTENT, [Answer(cut=123_456), Answer()]) as server:
        with pytest.raises(DownloadError):
            get(server, path, tries=1)
        get(server, path)
    assert server.requests[1]["Range"] == "bytes=123456-"
    assert path.read_bytes() == CONTENT


def test_b1_a_part_that_is_already_whole_needs_no_request(path: Path) -> None:
    with Misbehaving(CONTENT, [Answer(cut=100)]) as server, pytest.raises(DownloadError):
        get(server, path, tries=1)
    path.with_name("file.part").write_bytes(CONTENT)
    get(server, path)
    assert len(server.requests) == 1
    assert path.read_bytes() == CONTENT


def test_b1_a_silent_server_is_left_after_the_idle_timeout(path: Path) -> None:
    with Misbehaving(CONTENT, [Answer(stall=50_000), Answer()]) as server:
        begun = time.monotonic()
        get(server, path, idle_timeout_s=0.3)
        took = time.monotonic() - begun
    assert path.read_bytes() == CONTENT
    assert server.requests[1]["Range"] == "bytes=50000-"
    assert 0.3 <= took < 3


def test_b1_a_server_that_stays_silent_is_given_up_with_that_reason(path: Path) -> None:
    with Misbehaving(CONTENT, [Answer(stall=0)]) as server, pytest.raises(DownloadError, match="fell silent"):
        get(server, path, idle_timeout_s=0.2, tries=2)


def test_b1_a_length_stated_too_long_does_not_keep_a_whole_file_from_being_accepted(path: Path) -> None:
    with Misbehaving(CONTENT, [Answer(declared=len(CONTENT) + 1000)]) as server:
        get(server, path)
    assert path.read_bytes() == CONTENT
    assert len(server.requests) == 1


def test_b1_a_length_of_more_digits_than_python_reads_counts_as_none(path: Path) -> None:
    with Misbehaving(CONTENT, [Answer(declared="9" * 5000)]) as server:
        get(server, path)
    assert path.read_bytes() == CONTENT


def test_b1_a_length_stated_too_short_does_not_pass_for_the_whole_file(path: Path) -> None:
    with Misbehaving(CONTENT, [Answer(declared=100_000), Answer()]) as server:
        get(server, path)
    assert path.read_bytes() == CONTENT
    assert server.requests[1]["Range"] == "bytes=100000-"


def test_b1_a_truncated_body_without_a_length_does_not_pass_for_the_whole_file(path: Path) -> None:
    with Misbehaving(CONTENT, [Answer(declared=-1, cut=70_000), Answer(declared=-1)]) as server:
        get(server, path)
    assert path.read_bytes() == CONTENT


def test_b1_a_server_that_ignores_range_is_read_from_the_start(path: Path) -> None:
    with Misbehaving(CONTENT, [Answer(cut=100_000), Answer(ranges=False)]) as server:
        get(server, path)
    assert server.requests[1]["Range"] == "bytes=100000-"
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"etag": '"1"'}, {"etag": '"2"'}),
        (
            {"etag": None, "modified": "Mon, 01 Jan 2024 00:00:00 GMT"},
            {"etag": None, "modified": "Tue, 02 Jan 2024 00:00:00 GMT"},
        ),
        (
            {"etag": 'W/"1"', "modified": "Mon, 01 Jan 2024 00:00:00 GMT"},
            {"etag": 'W/"2"', "modified": "Tue, 02 Jan 2024 00:00:00 GMT"},
        ),
        ({"etag": None}, {"etag": None}),
    ],
    ids=["etag", "date", "weak-etag", "no-validator"],
)
def test_b1_a_file_that_changed_between_attempts_is_begun_again(
    path: Path, before: dict[str, str | None], after: dict[str, str | None]
) -> None:
    old = random_bytes(200_000, seed=1)
    with Misbehaving(CONTENT, [Answer(content=old, cut=100_000, **before), Answer(**after)]) as server:  # type: ignore[arg-type]
        get(server, path)
    assert path.read_bytes() == CONTENT


def test_b1_pieces_of_two_files_that_do_not_fit_together_are_begun_again(path: Path) -> None:
    """The server claims that nothing has changed, so only the checksum can tell."""
    old = random_bytes(len(CONTENT), seed=1)
    with Misbehaving(CONTENT, [Answer(content=old, cut=100_000), Answer()]) as server:
        get(server, path)
    assert path.read_bytes() == CONTENT
    assert [request.get("Range") for request in server.requests] == [None, "bytes=100000-", "bytes=300000-", None]


@pytest.mark.parametrize("ranges", [True, False])
def test_b1_a_wrong_checksum_is_refused_and_begun_afresh_by_the_next_call(path: Path, ranges: bool) -> None:
    wrong = random_bytes(len(CONTENT), seed=2)
    with Misbehaving(CONTENT, [Answer(content=wrong, ranges=ranges)]) as server:
        with pytest.raises(DownloadError, match="checksum") as caught:
            get(server, path)
        assert md5(wrong) in str(caught.value)
        assert md5(CONTENT) in str(caught.value)
        assert not path.exists()
        server.script = [Answer()]
        get(server, path)
    assert "Range" not in server.requests[-1]
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("status", [403, 404, 410])
def test_b1_a_refusal_is_final_at_once(path: Path, status: int) -> None:
    with Misbehaving(CONTENT, [Answer(status=status)]) as server, pytest.raises(DownloadError, match=str(status)):
        get(server, path)
    assert len(server.requests) == 1
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("status", [429, 500, 503])
def test_b1_a_passing_failure_of_the_server_is_tried_again(path: Path, status: int) -> None:
    with Misbehaving(CONTENT, [Answer(status=status), Answer(status=status), Answer()]) as server:
        get(server, path)
    assert path.read_bytes() == CONTENT


def test_b1_a_server_that_always_fails_is_given_up_after_five_tries(path: Path) -> None:
    with Misbehaving(CONTENT, [Answer(status=500)]) as server, pytest.raises(DownloadError, match="500"):
        get(server, path)
    assert len(server.requests) == 5


def test_b1_a_server_that_is_not_there_is_a_download_error(path: Path) -> None:
    with Misbehaving(CONTENT) as server:
        pass
    with pytest.raises(DownloadError, match="connection broke"):
        get(server, path, tries=2)


def test_b1_the_pauses_between_tries_double(path: Path) -> None:
    with Misbehaving(CONTENT, [Answer(status=500)]) as server:
        begun = time.monotonic()
        with pytest.raises(DownloadError):
            get(server, path, tries=4, backoff_s=0.05)
    assert time.monotonic() - begun >= 0.05 + 0.1 + 0.2


@pytest.mark.parametrize("location", ["ftp://127.0.0.1/file", "file:///etc/hostname"])
def test_b1_a_redirection_to_something_else_than_the_web_is_not_followed(path: Path, location: str) -> None:
    with Misbehaving(CONTENT, [Answer(status=302, location=location)]) as server, pytest.raises(DownloadError):
        get(server, path)
    assert not path.exists()


@pytest.mark.parametrize("checksum", ["", "0123", "z" * 32])
def test_b1_nothing_is_downloaded_without_a_checksum(path: Path, checksum: str) -> None:
    with Misbehaving(CONTENT) as server, pytest.raises(SettingsError, match="checksum"):
        get(server, path, checksum=checksum)
    assert server.requests == []


def test_b1_a_file_that_is_there_but_wrong_is_neither_used_nor_replaced(path: Path) -> None:
    path.write_bytes(b"mine")
    with Misbehaving(CONTENT) as server, pytest.raises(DownloadError, match="Move it away"):
        get(server, path)
    assert path.read_bytes() == b"mine"


def test_b1_a_file_without_end_is_stopped_at_the_limit(path: Path) -> None:
    with Misbehaving(CONTENT, [Answer(declared=-1)]) as server, pytest.raises(DownloadError, match="too long"):
        get(server, path, limit_bytes=100_000)
    assert path.with_name("file.part").stat().st_size <= 100_000


def test_b1_a_file_that_the_disk_has_no_room_for_is_not_begun(path: Path) -> None:
    with (
        Misbehaving(CONTENT, [Answer(declared=2**60)]) as server,
        pytest.raises(ResourceError, match=r"the disk is full; found [\d,]+ bytes free, expected [\d,]+ bytes"),
    ):
        get(server, path, limit_bytes=2**62)
    assert path.with_name("file.part").stat().st_size == 0


def test_b1_a_disk_that_fills_up_keeps_the_part_and_the_download_goes_on_later(small_disk: Path) -> None:
    content = random_bytes(3 * 1024**2)
    path = small_disk / "file"
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(2 * 1024**2))
    with Misbehaving(content, [Answer(declared=-1), Answer()]) as server:
        with pytest.raises(ResourceError, match="disk is full"):
            get(server, path, checksum=md5(content))
        kept = path.with_name("file.part").stat().st_size
        assert 0 < kept < len(content)
        ballast.unlink()
        get(server, path, checksum=md5(content))
    assert server.requests[1]["Range"] == f"bytes={kept}-"
    assert path.read_bytes() == content


# B1: the process


def test_b1_a_name_that_is_taken_meanwhile_is_told_of_and_the_download_is_kept(path: Path) -> None:
    def take_the_name(*_: object) -> None:
        path.mkdir(exist_ok=True)

    with Misbehaving(CONTENT) as server, pytest.raises(ResourceError, match="cannot be written"):
        get(server, path, progress=take_the_name)
    assert path.with_name(path.name + ".part").read_bytes() == CONTENT


def fetching_process(server: Misbehaving, out: Path, archive: bytes) -> subprocess.Popen[str]:
    program = (
        "import sys; from unscanned.datasets.ixi import fetch_ixi;"
        "fetch_ixi(sys.argv[1], contrasts=('PD',), base_url=sys.argv[2], checksums={'PD': sys.argv[3]}, backoff_s=0.01)"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, str(out), server.url, md5(archive)], stderr=subprocess.PIPE, text=True
    )


def wait_for(condition: object, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 20
    while not condition():  # type: ignore[operator]
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "the process does not get there"
        time.sleep(0.002)


def test_b1_a_download_that_was_killed_is_resumed_by_a_second_process(tmp_path: Path) -> None:
    archive = tar_of(member(SCAN, random_bytes(400_000)))
    part = tmp_path / "out" / "IXI-PD.tar.part"
    with Misbehaving(archive, [Answer(stall=200_000), Answer()]) as server:
        first = fetching_process(server, part.parent, archive)
        wait_for(lambda: part.exists() and part.stat().st_size == 200_000, first)
        first.send_signal(signal.SIGKILL)
        first.communicate()
        assert sorted(os.listdir(part.parent)) == [".lock", "IXI-PD.tar.part", "IXI-PD.tar.part.json", "README.txt"]
        second = fetching_process(server, part.parent, archive)
        _, errors = second.communicate(timeout=30)
    assert second.returncode == 0, errors
    assert server.requests[1]["Range"] == "bytes=200000-"
    assert (part.parent / "IXI-PD" / SCAN).read_bytes() == random_bytes(400_000)
    assert not part.exists()


def test_b1_a_process_killed_while_it_unpacks_leaves_no_half_of_the_folder(tmp_path: Path) -> None:
    scans = [member(f"IXI{n:03}-HH-{n:04}-PD.nii.gz", random_bytes(500, seed=n)) for n in range(1, 151)]
    archive = tar_of(*scans)
    moments = random.Random(0)
    with Misbehaving(archive) as server:
        for attempt in range(6):
            out = tmp_path / f"out{attempt}"
            final = out / "IXI-PD"
            process = fetching_process(server, out, archive)
            wait_for(lambda out=out: (out / "IXI-PD").exists() or any(out.glob(".partial-IXI-PD-*/*")), process)
            time.sleep(moments.uniform(0, 0.02))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            assert not final.exists() or len(list(final.iterdir())) == len(scans) + 1
            fetch_ixi(out, contrasts=("PD",), base_url=server.url, checksums={"PD": md5(archive)})
            assert {path.name: path.read_bytes() for path in final.glob("*.nii.gz")} == {
                info.name: content for info, content in scans
            }
            assert list(out.glob(".partial-*")) == []


def test_b1_two_processes_do_not_fetch_into_one_folder(tmp_path: Path) -> None:
    archive = tar_of(member(SCAN, b"scan"))
    with Misbehaving(archive, [Answer(stall=100)]) as server:
        first = fetching_process(server, tmp_path, archive)
        wait_for(lambda: server.requests, first)
        with pytest.raises(BusyError):
            fetch_ixi(tmp_path, contrasts=("PD",), base_url=server.url, checksums={"PD": md5(archive)})
        first.kill()
        first.communicate()


# B2 and B3: the archive

EVIL = {
    "leads-out": member("../escaped", b"evil"),
    "leads-out-below": member("IXI-PD/../../escaped", b"evil"),
    "absolute": member("/escaped", b"evil"),
    "backslashes": member("..\\escaped", b"evil"),
    "symlink": member("link", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "hardlink": member("link", type=tarfile.LNKTYPE, linkname=SCAN),
    "character-device": member("device", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
    "block-device": member("device", type=tarfile.BLKTYPE, devmajor=8, devminor=0),
    "fifo": member("fifo", type=tarfile.FIFOTYPE),
    "setuid": member("tool", b"evil", mode=0o4755),
    "setgid": member("tool", b"evil", mode=0o2755),
    "path-twice": member(SCAN, b"other"),
    "file-as-folder": member(f"{SCAN}/below", b"evil"),
    "newline": member("a\nb", b"evil"),
    "long-name": member("a" * 300, b"evil"),
    "long-header": member("a" * (2 * 1024**2), b"evil"),
    "no-name": member(".", b"evil"),
}


@pytest.mark.parametrize("evil", EVIL.values(), ids=EVIL.keys())
def test_b2_an_evil_archive_is_refused_and_nothing_is_written(
    tmp_path: Path, evil: tuple[tarfile.TarInfo, bytes]
) -> None:
    archive = tar_of(member(SCAN, b"scan"), evil)
    out = tmp_path / "deep" / "out"
    with Misbehaving(archive) as server, pytest.raises(DatasetError, match=r"IXI-PD\.tar"):
        fetch_ixi(out, contrasts=("PD",), base_url=server.url, checksums={"PD": md5(archive)})
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".lock", "IXI-PD.tar", "README.txt", "deep", "out"]
    assert not Path("/escaped").exists()


def test_b2_owner_mode_and_time_of_a_member_have_no_effect(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar"
    archive.write_bytes(tar_of(member(SCAN, b"scan", mode=0o777, uid=12345, mtime=0)))
    out = tmp_path / "out"
    out.mkdir()
    assert unpack_tar(archive, out) == {SCAN: 4}
    facts = (out / SCAN).stat()
    assert facts.st_mode & 0o111 == 0
    assert facts.st_uid == os.getuid()
    assert time.time() - facts.st_mtime < 60


@pytest.mark.parametrize("kept", [0, 100, 700, 1_200, 1_536, 2_000, 3_072])
def test_b2_a_cut_archive_is_refused(tmp_path: Path, kept: int) -> None:
    archive = tmp_path / "a.tar"
    archive.write_bytes(tar_of(member(SCAN, b"s" * 1000), member(OTHER_SCAN, b"s" * 1000))[:kept])
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(DatasetError, match="cannot be read"):
        unpack_tar(archive, out)
    assert list(out.iterdir()) == []


def test_b2_an_archive_with_a_flipped_byte_is_unpacked_within_the_folder_or_refused(tmp_path: Path) -> None:
    whole = bytearray(tar_of(member(f"IXI-PD/{SCAN}", b"s" * 600), member("a" * 150, b"t" * 20)))
    chance = random.Random(0)
    archive = tmp_path / "a.tar"
    refused = 0
    for attempt in range(300):
        broken = bytearray(whole)
        broken[chance.randrange(5 * 512)] = chance.randrange(256)
        archive.write_bytes(broken)
        out = tmp_path / f"out{attempt}"
        out.mkdir()
        try:
            unpack_tar(archive, out)
        except DatasetError:
            refused += 1
            assert list(out.iterdir()) == []
    assert 100 < refused < 300
    assert {path.name.rstrip("0123456789") for path in tmp_path.iterdir()} == {"a.tar", "out"}


def test_b2_an_archive_that_the_disk_has_no_room_for_is_not_unpacked(small_disk: Path, tmp_path: Path) -> None:
    archive = tmp_path / "a.tar"
    archive.write_bytes(tar_of(member(SCAN, bytes(5 * 1024**2))))
    with pytest.raises(ResourceError, match=r"the disk is full; found [\d,]+ bytes free, expected [\d,]+ bytes"):
        unpack_tar(archive, small_disk)
    assert list(small_disk.iterdir()) == []


def test_b3_an_archive_of_too_many_members_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar"
    archive.write_bytes(b"".join(tarfile.TarInfo(f"{n}").tobuf() for n in range(20_001)) + bytes(1024))
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(DatasetError, match="too many members"):
        unpack_tar(archive, out)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("claimed", [2**33, 2**62])
def test_b3_a_member_that_claims_more_than_the_archive_can_hold_is_refused(tmp_path: Path, claimed: int) -> None:
    info = tarfile.TarInfo(SCAN)
    info.size = claimed
    archive = tmp_path / "a.tar"
    archive.write_bytes(info.tobuf() + bytes(10_240))
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(DatasetError, match="unpack to too much"):
        unpack_tar(archive, out)
    assert list(out.iterdir()) == []


def test_b3_a_sparse_file_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo(SCAN)
    info.pax_headers = {"GNU.sparse.map": "0,4", "GNU.sparse.size": "2048", "GNU.sparse.name": SCAN}
    info.size = 4
    archive = tmp_path / "a.tar"
    archive.write_bytes(info.tobuf(format=tarfile.PAX_FORMAT) + b"scan" + bytes(10_240))
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(DatasetError, match="special file"):
        unpack_tar(archive, out)
    assert list(out.iterdir()) == []


def test_b3_a_compressed_archive_is_refused_without_decompressing_it(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w:gz") as tar:
        info, content = member(SCAN, bytes(20 * 1024**2))
        tar.addfile(info, io.BytesIO(content))
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(DatasetError, match="uncompressed"):
        unpack_tar(archive, out)
    assert list(out.iterdir()) == []
