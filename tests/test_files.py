import contextlib
import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from tool import ENVIRONMENT

from unscanned.errors import BusyError, DatasetError, ResourceError
from unscanned.files import (
    atomic_path,
    lock,
    new_folder,
    read_json,
    read_sealed,
    read_text,
    remove_partials,
    sha256,
    write_bytes,
    write_json,
    write_sealed,
    write_text,
)

WRITING = """
import sys, time
from unscanned.files import atomic_path
with atomic_path(sys.argv[1]) as temporary:
    temporary.write_bytes(b"half")
    print("ready", flush=True)
    time.sleep(60)
"""


def script(text, *arguments):
    """Start a Python process that runs this text, and wait for its first line."""
    process = subprocess.Popen(
        [sys.executable, "-c", text, *map(str, arguments)], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_file_is_written_with_the_folders_above_it(tmp_path):
    path = tmp_path / "días_磁共振" / "a b" / "text.txt"
    write_text(path, "grüße\n")
    assert path.read_bytes() == "grüße\n".encode()
    assert list(path.parent.iterdir()) == [path]


def test_a_text_beyond_its_limit_is_refused_and_a_large_limit_takes_no_memory(tmp_path):
    (tmp_path / "text.txt").write_text("1234567")
    assert read_text(tmp_path / "text.txt", limit_bytes=7) == "1234567"
    assert read_text(tmp_path / "text.txt", limit_bytes=2**60) == "1234567"
    with pytest.raises(OSError, match="longer than 6 bytes"):
        read_text(tmp_path / "text.txt", limit_bytes=6)


def test_a_write_that_fails_leaves_the_old_content_and_nothing_beside_it(tmp_path):
    path = tmp_path / "table.csv"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), atomic_path(path) as temporary:
        temporary.write_text("half of the n") / 0
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_process_killed_while_it_writes_leaves_the_old_content(tmp_path):
    path = tmp_path / "weights.safetensors"
    write_bytes(path, b"old")
    process = script(WRITING, path)
    with process:
        process.kill()
    assert path.read_bytes() == b"old"
    assert all(other.name.startswith(".partial-") for other in tmp_path.iterdir() if other != path)


def test_a_folder_that_a_living_process_writes_is_busy_and_a_dead_one_s_is_cleared_away(tmp_path):
    path = tmp_path / "series"
    process = script(
        "import sys, time\n"
        "from unscanned.files import new_folder\n"
        "with new_folder(sys.argv[1]) as temporary:\n"
        "    (temporary / 'half').touch()\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n",
        path,
    )
    with process:
        with pytest.raises(BusyError, match="in use by another run"), new_folder(path):
            pass
        process.kill()
    assert not path.exists()
    with new_folder(path) as temporary:
        (temporary / "whole").touch()
    assert [found.relative_to(tmp_path).as_posix() for found in tmp_path.rglob("*")] == ["series", "series/whole"]


def test_a_folder_whose_name_begins_like_another_is_another(tmp_path):
    with new_folder(tmp_path / "T2-bbbbbbbb"), new_folder(tmp_path / "T2") as temporary:
        (temporary / "a").touch()
    with new_folder(tmp_path / "x1") as other, new_folder(tmp_path / "x[1]"):
        assert other.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"T2-bbbbbbbb", "T2", "x1", "x[1]"}


def test_an_unfinished_file_goes_when_its_process_is_dead_and_not_before(tmp_path):
    path = tmp_path / "inside" / "scan.nii.gz"
    process = script(WRITING, path)
    with process:
        remove_partials(tmp_path)
        assert len(list(path.parent.iterdir())) == 1
        process.kill()
    remove_partials(tmp_path)
    assert list(path.parent.iterdir()) == []


def test_what_was_sealed_is_read_back_and_any_change_of_it_is_found(tmp_path):
    path = tmp_path / "facts.json"
    content = {"step": 4, "name": "días_磁共振", "scale": 0.1, "list": [1, None, {"b": 2, "a": 1}]}
    write_sealed(path, content)
    assert read_sealed(path) == content
    for old, new in (("4", "5"), ("0.1", "0.10000000000000002"), ('"b": 2', '"b": 3'), ("seal_sha256", "seal")):
        write_sealed(path, content)
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))
        with pytest.raises(ValueError, match="it was changed"):
            read_sealed(path)
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        read_json(path)


@pytest.mark.parametrize("small_disk", ["64k"], indirect=True)
def test_a_lock_on_a_disk_without_a_byte_left_is_held_or_told_as_full(small_disk):
    (small_disk / "run").mkdir()
    with contextlib.suppress(OSError), open(small_disk / "filler", "wb") as file:
        file.write(bytes(1_000_000))
    assert shutil.disk_usage(small_disk).free == 0
    with lock(small_disk / "run"), pytest.raises(BusyError), lock(small_disk / "run"):
        pass


def test_a_file_is_flushed_before_it_gets_its_name_and_the_folder_after(tmp_path, monkeypatch):
    done = []
    flush, rename = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda file: done.append(("flush", os.fstat(file).st_ino)) or flush(file))
    monkeypatch.setattr(Path, "replace", lambda path, name: done.append(("rename", name)) or rename(path, name))
    write_bytes(tmp_path / "file", b"content")
    file, folder = ((tmp_path / name).stat().st_ino for name in ("file", "."))
    assert done == [("flush", file), ("rename", tmp_path / "file"), ("flush", folder)]


def test_what_a_disk_has_no_room_for_is_not_begun_and_the_old_file_stays(tmp_path, monkeypatch):
    write_bytes(tmp_path / "file", b"old")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5))
        with pytest.raises(ResourceError, match="the disk is full; found 5 bytes free, expected 10"):
            write_bytes(tmp_path / "file", b"0123456789")
    with pytest.raises(ResourceError, match="the disk is full"), atomic_path(tmp_path / "file"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # it filled up meanwhile
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_system_without_locks_is_not_taken_for_another_run(tmp_path, monkeypatch):
    def refuse(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(ResourceError, match=r"cannot lock files.*found No locks available.*local disk"), lock(tmp_path):
        pass


def test_of_two_who_begin_the_same_folder_at_once_one_keeps_it(tmp_path):
    path = tmp_path / "series"
    with contextlib.ExitStack() as stack:
        (stack.enter_context(new_folder(path)) / "second").touch()
        write_text(path / "first", "")
        with pytest.raises(DatasetError, match="is there already"):
            stack.close()
    assert [found.relative_to(tmp_path).as_posix() for found in tmp_path.rglob("*")] == ["series", "series/first"]


def test_the_temporary_name_keeps_the_suffixes_that_libraries_look_at(tmp_path):
    with atomic_path(tmp_path / "scan.nii.gz") as temporary:
        assert temporary.name.endswith(".nii.gz")
        assert temporary.parent == tmp_path


def test_a_new_file_has_the_rights_that_any_new_file_gets(tmp_path):
    (tmp_path / "plain").write_text("a")
    write_text(tmp_path / "atomic", "a")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_readers_never_see_half_a_file(tmp_path):
    path = tmp_path / "content"
    contents = {b"a" * 300_000, b"b" * 100_000}
    write_bytes(path, b"a" * 300_000)
    seen = set()
    done = threading.Event()

    def read():
        while not done.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for content in list(contents) * 20:
        write_bytes(path, content)
    done.set()
    reader.join()
    assert seen
    assert seen <= contents


@pytest.mark.parametrize("small_disk", ["256k"], indirect=True)
def test_a_full_disk_is_told_as_such_and_costs_nothing_that_was_there(small_disk):
    path = small_disk / "model.safetensors"
    write_bytes(path, b"old")
    with pytest.raises(ResourceError, match="the disk is full") as refusal:
        write_bytes(path, bytes(1_000_000))
    assert refusal.value.exit_code == 7
    assert path.read_bytes() == b"old"
    assert list(small_disk.iterdir()) == [path]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_or_quota_inside_the_body_is_told_as_such(tmp_path, code):
    with pytest.raises(ResourceError, match="the disk is full"), atomic_path(tmp_path / "x"):
        raise OSError(code, os.strerror(code))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("inside", ["file/below.json", "file"])
def test_a_place_that_cannot_hold_the_file_is_named(tmp_path, inside):
    (tmp_path / "file").write_text("a file, not a folder")
    with pytest.raises(ResourceError, match="cannot be written"):
        write_json(tmp_path / inside / "settings.json", {})


def test_the_lock_of_a_folder_that_cannot_be_made_names_it(tmp_path):
    (tmp_path / "file").write_text("a file, not a folder")
    with pytest.raises(ResourceError, match="file"), lock(tmp_path / "file"):
        pass


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_never_holds_what_is_not_json(tmp_path, value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": value})
    assert list(tmp_path.iterdir()) == []


def test_json_is_read_back_the_same_and_the_same_content_gives_the_same_bytes(tmp_path):
    content = {"b": [1, 2.5, None], "a": {"grüße": "磁共振"}}
    write_json(tmp_path / "1.json", content)
    write_json(tmp_path / "2.json", content)
    assert read_json(tmp_path / "1.json") == content
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "2.json").read_bytes()
    assert sha256(tmp_path / "1.json") == sha256(tmp_path / "2.json")


def test_the_hash_is_that_of_the_standard(tmp_path):
    write_bytes(tmp_path / "abc", b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


HOLD = (
    "import sys, time\n"
    "from unscanned.files import lock\n"
    "with lock(sys.argv[1]):\n"
    "    print('ready', flush=True)\n"
    "    time.sleep(60)\n"
)


def test_a_folder_that_another_process_holds_is_refused_with_its_number(tmp_path):
    with script(HOLD, tmp_path) as process:
        with pytest.raises(BusyError, match=f"process {process.pid} on ") as refusal, lock(tmp_path):
            pass
        process.kill()
    assert refusal.value.exit_code == 8


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_of_a_process_that_died_is_free(tmp_path, number):
    with script(HOLD, tmp_path) as process:
        process.send_signal(number)
    with lock(tmp_path):
        assert str(os.getpid()) in (tmp_path / ".lock").read_text()


def test_a_lock_is_free_again_after_its_body_even_when_that_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), lock(tmp_path):
        raise ZeroDivisionError
    with lock(tmp_path):
        pass


def test_of_many_processes_at_once_one_gets_the_lock(tmp_path):
    text = (
        "import sys, time\n"
        "from unscanned.errors import BusyError\n"
        "from unscanned.files import lock\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "try:\n"
        "    with lock(sys.argv[1]):\n"
        "        time.sleep(1)\n"
        "except BusyError:\n"
        "    sys.exit(8)\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", text, str(tmp_path)],
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(8)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.close()
    assert sorted(process.wait() for process in processes) == [0] + [8] * 7


def test_paths_may_be_strings(tmp_path):
    write_text(f"{tmp_path}/a.txt", "a")
    assert Path(tmp_path, "a.txt").read_text() == "a"


def test_a_device_is_written_to_and_stays_one(tmp_path):
    before = os.stat("/dev/null")
    write_json("/dev/null", {"a": 1})
    assert os.stat("/dev/null")[:3] == before[:3]
    with pytest.raises(ResourceError, match="/dev/full: the disk is full") as refusal:
        write_text("/dev/full", "a")
    assert refusal.value.exit_code == 7


def test_a_named_pipe_is_written_to_and_stays_one(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_bytes(pipe, b"content" * 100_000)
    reader.join()
    assert read == [b"content" * 100_000]
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_descriptor_is_written_to_where_it_stands_and_the_pipe_behind_it_too(tmp_path):
    reading, writing = os.pipe()
    write_text(f"/dev/fd/{writing}", "through a pipe")
    assert os.read(reading, 100) == b"through a pipe"
    text = (
        "import sys\nfrom unscanned.files import write_text\n"
        "print('before')\nwrite_text('/dev/stdout', 'between\\n')\nprint('after')\n"
    )
    with open(tmp_path / "out", "wb") as out:
        subprocess.run([sys.executable, "-c", text], env=ENVIRONMENT, stdout=out, check=True)
    assert (tmp_path / "out").read_text() == "before\nbetween\nafter\n"
    os.close(reading)
    with pytest.raises(ResourceError, match="cannot be written; found Broken pipe"):
        write_text(f"/dev/fd/{writing}", "nobody reads it")
    os.close(writing)


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_the_file_that_it_leads_to_is_replaced(tmp_path, there):
    (tmp_path / "other").mkdir()
    target, link = tmp_path / "other" / "target.json", tmp_path / "link.json"
    if there:
        target.write_text("old")
    link.symlink_to(Path("other") / "target.json")
    write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    with pytest.raises(ZeroDivisionError), atomic_path(link) as temporary:
        temporary.write_text("half") / 0
    assert target.read_text() == "new"
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["target.json"]


def test_a_link_in_a_circle_cannot_be_written_to(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(ResourceError, match="cannot be written; found Too many levels"):
        write_text(tmp_path / "a", "text")


def test_a_name_that_is_too_long_cannot_be_written(tmp_path):
    with pytest.raises(ResourceError, match="cannot be written; found File name too long"):
        write_text(tmp_path / ("a" * 300), "text")


LIMITED = """
import resource, sys
import numpy as np
from unscanned.errors import ResourceError
from unscanned.files import atomic_path, new_folder, write_bytes
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
def whole(path):
    write_bytes(path, bytes(100_000))
def array(path):
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.save(file, np.zeros(100_000))
def folder(path):
    with new_folder(path) as temporary:
        np.save(temporary / "array.npy", np.zeros(100_000))
try:
    globals()[sys.argv[2]](sys.argv[1])
except ResourceError as error:
    print(error)
"""


@pytest.mark.parametrize("kind", ["whole", "array", "folder"])
def test_a_limit_on_the_size_of_files_is_told_as_such(tmp_path, kind):
    call = [sys.executable, "-c", LIMITED, str(tmp_path / "out"), kind]
    done = subprocess.run(call, env=ENVIRONMENT, capture_output=True, text=True)
    assert "out: the system does not allow a file of this size; found a limit of 10,000 bytes" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("small_disk", ["256k"], indirect=True)
def test_an_array_that_the_disk_does_not_hold_is_told_as_a_full_disk(small_disk):
    import numpy as np

    with pytest.raises(ResourceError, match="the disk is full"), atomic_path(small_disk / "a.npy") as temporary:
        np.save(temporary, np.zeros(1_000_000))  # NumPy's error has no number that says why
    assert list(small_disk.iterdir()) == []
