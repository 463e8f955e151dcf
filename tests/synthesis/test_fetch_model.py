"""A model from an address: a real server, real archives, and every way in which they can be wrong."""

import gzip
import hashlib
import io
import os
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
from server import Answer, Misbehaving
from tool import ENVIRONMENT

from unscanned.datasets.archive import unpack_zip
from unscanned.errors import CheckpointError, DatasetError, DownloadError, SettingsError
from unscanned.files import lock
from unscanned.synthesis.fetch_model import fetch_model
from unscanned.synthesis.model_file import load_model
from unscanned.synthesis.shelf import list_models, read_list, user_shelf

QUICK = {"idle_timeout_s": 5.0, "backoff_s": 0.001, "tries": 2}


@pytest.fixture(autouse=True)
def at_home(monkeypatch, tmp_path, no_shipped_models):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "unscanned" / "models"


def zipped(folder, prefix=""):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, prefix + path.name)
    return stream.getvalue()


def tarred(folder, prefix=""):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for path in sorted(folder.iterdir()):
            archive.add(path, prefix + path.name)
    return stream.getvalue()


def digest(content):
    return hashlib.sha256(content).hexdigest()


def fetch(content, *script, checksum=None, **options):
    with Misbehaving(content, list(script) or [Answer()]) as server:
        model = fetch_model(f"{server.url}/pd-t2.zip?x=1", checksum or digest(content), **QUICK, **options)
    return model, server


def left(shelf):
    """What lies on a shelf, but for its lock."""
    return sorted(
        path.relative_to(shelf).as_posix() for path in shelf.rglob("*") if path.is_file() and path.name != ".lock"
    )


@pytest.mark.parametrize("pack", [zipped, tarred])
@pytest.mark.parametrize("prefix", ["", "my-model/"])
def test_a_model_is_fetched_listed_and_loaded_by_its_name(tiny_run, at_home, pack, prefix):
    content = pack(tiny_run / "model", prefix)
    model, _ = fetch(content)
    assert (model.name, model.folder) == ("pd-t2", at_home / "pd-t2")
    assert left(at_home) == ["models.json", "pd-t2/model.json", "pd-t2/model.safetensors"]
    entry = read_list(at_home).models["pd-t2"]
    assert entry.archive_sha256 == digest(content)
    assert entry.url.endswith("/pd-t2.zip?x=1")
    assert [(listed.name, listed.origin) for listed in list_models()] == [("pd-t2", "fetched")]
    assert load_model("pd-t2").sha256 == load_model(tiny_run).sha256


def test_a_download_that_broke_goes_on_where_it_broke(tiny_run, at_home):
    content = zipped(tiny_run / "model")
    with Misbehaving(content, [Answer(cut=5000), Answer()]) as server:
        url = f"{server.url}/model.zip"
        with pytest.raises(DownloadError, match="run the same command again"):
            fetch_model(url, digest(content), **{**QUICK, "tries": 1})
        assert list_models() == []
        fetch_model(url, digest(content), **QUICK)
    assert server.requests[1]["Range"] == "bytes=5000-"
    assert load_model("pd-t2").name == "pd-t2"
    assert [name for name in left(at_home) if "part" in name] == []


def test_a_model_in_place_is_not_fetched_again(tiny_run, at_home):
    content = zipped(tiny_run / "model")
    fetch(content)
    told = []
    again, server = fetch(content, progress=lambda *now: told.append(now))
    assert (again.name, server.requests) == ("pd-t2", [])
    assert told == [(1, 1, "pd-t2: already in place")]


def test_a_model_that_was_changed_is_refused_and_fetched_again_once_removed(tiny_run, at_home):
    content = zipped(tiny_run / "model")
    fetch(content)
    (at_home / "pd-t2" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(
        CheckpointError, match=r"Remove .*pd-t2 and fetch it again: unscanned fetch model 'http://127.*--sha"
    ):
        fetch(content)
    shutil.rmtree(at_home / "pd-t2")
    fetch(content)
    assert load_model("pd-t2").name == "pd-t2"


def test_another_checksum_is_refused_and_nothing_is_unpacked(tiny_run, at_home):
    with pytest.raises(DownloadError, match="checksum") as caught:
        fetch(zipped(tiny_run / "model"), checksum="0" * 64)
    assert caught.value.exit_code == 9
    assert list_models() == []
    assert [name for name in left(at_home) if name.endswith("model.json")] == []


@pytest.mark.parametrize("checksum", ["", "0" * 32, "0" * 63, "g" * 64])
def test_nothing_is_accepted_without_a_sha256(at_home, checksum):
    with pytest.raises(SettingsError, match="not a SHA-256"):
        fetch_model("http://127.0.0.1:9/x.zip", checksum)
    assert not at_home.exists()


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/x", "x.zip", "", "http://"])
def test_what_is_no_address_is_refused_before_anything_is_written(at_home, url):
    with pytest.raises(SettingsError, match="not an address"):
        fetch_model(url, "0" * 64)
    assert not at_home.exists()


def test_another_model_of_the_same_name_needs_another_name_and_is_not_downloaded_twice(tiny_run, at_home):
    fetch(zipped(tiny_run / "model"))
    other = zipped(tiny_run / "model", "other/")
    with pytest.raises(SettingsError, match=r"another model has this name; found pd-t2\. .*--name"):
        fetch(other)
    model, server = fetch(other, name="pd-t2-mine")
    assert (model.name, server.requests) == ("pd-t2-mine", [])
    assert sorted(listed.name for listed in list_models()) == ["pd-t2", "pd-t2-mine"]
    with pytest.raises(SettingsError, match="another model has this name"):
        fetch(zipped(tiny_run / "model", "third/"), name="pd-t2")


def test_a_name_of_the_package_is_not_taken(tiny_run, shelf, monkeypatch):
    monkeypatch.setattr("unscanned.synthesis.fetch_model.SHIPPED", shelf)
    with pytest.raises(SettingsError, match="another model has this name"):
        fetch(zipped(tiny_run / "model"))


def test_another_shelf_can_be_named(tiny_run, at_home, tmp_path):
    model, _ = fetch(zipped(tiny_run / "model"), out=tmp_path / "lab")
    assert model.folder == tmp_path / "lab" / "pd-t2"
    assert load_model("pd-t2", models_in=tmp_path / "lab").name == "pd-t2"
    assert not at_home.exists()


def members(*found):
    """A zip of names with their content; a name may come with attributes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in found:
            archive.writestr(name, content)
    return stream.getvalue()


def special(name, mode):
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    return info


def longer_than_stated():
    """A zip whose directory says 10 bytes of a member that has 100,000."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.json", b"0" * 100_000)
    return stream.getvalue().replace((100_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (members(("../model.json", b"x")), "leads out of the folder"),
        (members(("/etc/model.json", b"x")), "leads out of the folder"),
        (members(("a\\..\\b", b"x")), "leads out of the folder|cannot be written"),
        (members(("c:model.json", b"x")), "leads out of the folder"),
        (members((special("model.json", stat.S_IFLNK | 0o777), b"/etc/passwd")), "has a link"),
        (members((special("model.json", stat.S_IFIFO | 0o600), b"")), "another special file"),
        (members(("a", b"x"), ("a/b", b"x")), "both a file and a folder"),
        (members(("a\nb", b"x")), "cannot be written"),
        (members(*((f"{n}", b"") for n in range(1001))), "too many members; found more than 1,000"),
        (longer_than_stated(), "cannot be read"),
        (members(("a", b"x"))[:-30], "cannot be read"),
        (b"PK\x05\x06" + bytes(10), "cannot be read"),
        (gzip.compress(bytes(600)), "a compressed tar archive is not taken; expected a zip or an uncompressed tar"),
        (bytes(100) + b"x" * 500, "a whole, uncompressed tar archive"),
        (members(("readme.txt", b"x")), "does not hold one model; found no model.json"),
        (members(("a/model.json", b"x"), ("b/model.json", b"x")), "does not hold one model; found a, b"),
        (members(("model.json", b"{}"), ("model.safetensors", b"x")), "another format of model|not a model"),
        (members(("model.json", b"\x80\x04K\x01."), ("model.pt", b"x")), "not a model"),
    ],
    ids=lambda value: "archive" if isinstance(value, bytes) else None,  # some hold the time, which processes differ in
)
def test_an_archive_that_attacks_or_holds_no_model_is_refused_and_leaves_nothing(at_home, tmp_path, content, words):
    with pytest.raises((DatasetError, CheckpointError), match=words):
        fetch(content)
    assert left(at_home) == []
    assert sorted(path.name for path in at_home.iterdir()) == [".lock"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home"]


def test_a_zip_bomb_is_refused_by_what_it_says_before_anything_is_written(tmp_path):
    archive, folder = tmp_path / "bomb.zip", tmp_path / "out"
    folder.mkdir()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("small", b"x")
        opened.writestr("large", bytes(30_000_000))
    assert archive.stat().st_size < 100_000
    with pytest.raises(DatasetError, match="too much; found 30,000,001 bytes, expected at most 1,000,000"):
        unpack_zip(archive, folder, limit_bytes=1_000_000)
    assert list(folder.iterdir()) == []


def test_an_encrypted_or_oddly_compressed_zip_is_refused(tmp_path):
    content = bytearray(members(("model.json", b"x")))
    for signature, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + place] |= 1
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(DatasetError, match="it is encrypted"):
        unpack_zip(tmp_path / "a.zip", tmp_path, limit_bytes=1000)
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("model.json", b"x")
    with pytest.raises(DatasetError, match="compressed in a way that is not read"):
        unpack_zip(tmp_path / "b.zip", tmp_path, limit_bytes=1000)


def test_two_processes_do_not_fetch_onto_one_shelf(tiny_run, at_home, cli):
    at_home.mkdir(parents=True)
    with lock(at_home):
        done = subprocess.run(
            [sys.executable, "-m", "unscanned", "fetch", "model", "http://127.0.0.1:9/x.zip", "--sha256", "0" * 64],
            env={**ENVIRONMENT, "XDG_DATA_HOME": os.environ["XDG_DATA_HOME"]},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 8, done.stderr


def test_a_fetch_that_is_killed_leaves_no_model_and_goes_on(tiny_run, at_home):
    content = zipped(tiny_run / "model")
    with Misbehaving(content, [Answer(stall=5000), Answer()]) as server:
        words = ["fetch", "model", f"{server.url}/m.zip", "--sha256", digest(content)]
        environment = {**ENVIRONMENT, "XDG_DATA_HOME": os.environ["XDG_DATA_HOME"], "no_proxy": "127.0.0.1"}
        with subprocess.Popen([sys.executable, "-m", "unscanned", *words], env=environment) as process:
            until = time.monotonic() + 60
            while not any(path.stat().st_size == 5000 for path in at_home.glob(".*.part")):
                assert time.monotonic() < until
                time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
        (at_home / ".partial-fetch-abc").mkdir()
        assert list_models() == []
        fetch_model(f"{server.url}/m.zip", digest(content), **QUICK)
    assert server.requests[1]["Range"] == "bytes=5000-"
    assert left(at_home) == ["models.json", "pd-t2/model.json", "pd-t2/model.safetensors"]
    assert not (at_home / ".partial-fetch-abc").exists()


def test_the_command_line_fetches_a_model_and_shows_it(tiny_run, cli, at_home):
    content = tarred(tiny_run / "model")
    with Misbehaving(content, [Answer()]) as server:
        done = cli("fetch", "model", f"{server.url}/m.tar", "--sha256", digest(content))
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"model pd-t2 is in {at_home / 'pd-t2'}; next: unscanned models pd-t2\n"
    assert "fetched" in cli("models").stdout
    assert f"fetched from  {server.url}/m.tar" in cli("models", "pd-t2").stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("model",), "URL: must be given"),
        (("model", "http://127.0.0.1:9/x"), "--sha256: must be given"),
        (("model", "http://127.0.0.1:9/x", "--sha256", "12"), "not a SHA-256; found '12'"),
        (("model", "http://127.0.0.1:9/x", "--sha256", "0" * 64, "--name", "A/b"), "not a name for a model"),
        (("ixi",), "--out: must be given"),
        (("ixi", "http://127.0.0.1:9/x", "-o", "out"), "URL: only for a model"),
        (("ixi", "-o", "out", "--sha256", "0" * 64), "--sha256: only for a model"),
        (("oasis", "-o", "out"), "found oasis, expected ixi or model"),
    ],
)
def test_wrong_words_are_refused_with_2(cli, tmp_path, monkeypatch, at_home, words, message):
    monkeypatch.chdir(tmp_path)
    done = cli("fetch", *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_place_of_fetched_models_is_that_of_the_platform(tmp_path):
    assert user_shelf() == Path(os.environ["XDG_DATA_HOME"]) / "unscanned" / "models"
