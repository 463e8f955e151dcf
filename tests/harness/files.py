"""What is done to the files of a call before it: faults of its inputs, and what stands at its output's place."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import stat
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from nifti_files import nifti_bytes, some_voxels

NOBODY = 65534


def files_below(path: Path) -> list[Path]:
    """Return a file, or the files below a folder, in a fixed order."""
    return [path] if not path.is_dir() else sorted(found for found in path.rglob("*") if found.is_file())


def _content(change: Callable[[bytes, random.Random], bytes]) -> Callable[[Path, random.Random], None]:
    return lambda path, draw: path.write_bytes(change(path.read_bytes(), draw)) and None


def _instead(make: Callable[[Path], object]) -> Callable[[Path, random.Random], None]:
    def replace(path: Path, draw: random.Random) -> None:
        path.unlink()
        make(path)

    return replace


def _flip(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content or b"\0")
    for _ in range(draw.randint(1, 8)):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _plain(path: Path, change: Callable[[bytes, random.Random], bytes], draw: random.Random) -> None:
    """Change what a file holds inside its compression."""
    content = path.read_bytes()
    is_gzip = content[:2] == b"\x1f\x8b"
    try:
        changed = change(gzip.decompress(content) if is_gzip else content, draw)
    except (OSError, EOFError, zlib.error):  # an earlier fault has left nothing to go into
        return
    path.write_bytes(gzip.compress(changed, 1, mtime=0) if is_gzip else changed)


def _inside(change: Callable[[bytes, random.Random], bytes]) -> Callable[[Path, random.Random], None]:
    return lambda path, draw: _plain(path, change, draw)


def _header(content: bytes, draw: random.Random) -> bytes:
    """Overwrite a field of a NIfTI header with a value at the edge."""
    values = [np.float32(v).tobytes() for v in (0, -1, 1e38, 1e-42, np.nan, np.inf, 1000, 0.001)]
    values += [np.int16(v).tobytes() for v in (0, -1, 2, 5, 64, 512, 32767, -32768)]
    changed, value = bytearray(content.ljust(348, b"\0")), draw.choice(values)
    place = draw.choice([40, 42, 44, 46, 48, 70, 72, 76, 80, 84, 88, 108, 112, 116, 123, 252, 254, 280, 296, 312, 344])
    changed[place : place + len(value)] = value
    return bytes(changed)


def _voxels(content: bytes, draw: random.Random) -> bytes:
    """Fill the voxels of a float32 NIfTI with one value, in whole or in part."""
    value = np.float32(draw.choice([np.nan, np.inf, -np.inf, 0, 3e38, -1, 1e-40])).tobytes()
    whole = 352 + 4 * ((len(content) - 352) // 4)
    first = 352 if draw.random() < 0.5 else min(whole, 352 + 4 * draw.randrange(max(1, (whole - 352) // 4)))
    return content[:first] + value * ((whole - first) // 4) + content[whole:]


def _nifti(**facts: object) -> Callable[[Path, random.Random], None]:
    def write(path: Path, draw: random.Random) -> None:
        content = nifti_bytes(**facts)  # type: ignore[arg-type]
        path.write_bytes(gzip.compress(content, 1, mtime=0) if path.name.endswith(".gz") else content)

    return write


def _edit_json(content: bytes, draw: random.Random) -> bytes:
    """Drop or replace one value of a JSON document, at any depth."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return b"{}"
    place, chosen = document, None
    while isinstance(place, dict | list) and place:
        chosen = (place, draw.choice(list(place) if isinstance(place, dict) else range(len(place))))
        place = place[chosen[1]]
        if draw.random() < 0.3:
            break
    if chosen is None:
        return b"[]"
    inside, key = chosen
    odd = [None, [], {}, "", "x", "../../x", "/dev/zero", 0, -1, 1e308, 2**70, True, float("nan"), [[[]]], "\x1b[31m"]
    if draw.random() < 0.3:
        del inside[key]
    else:
        inside[key] = draw.choice(odd)
    return json.dumps(document).encode()


def _edit_lines(content: bytes, draw: random.Random) -> bytes:
    """Repeat, drop, swap, cut or soil a line of a text."""
    lines = content.split(b"\n")
    place = draw.randrange(len(lines))
    line = lines[place]
    soiled = [
        b"", line + line, line[: len(line) // 2], line.replace(b",", b";"), line.replace(b"=", b"=="), b"\0" + line,
        b"\xff\xfe" + line, line.replace(b"1", b"1e999"), line.replace(b"PD", b"T2"), b'"' + line, line[::-1],
        line.replace(b".nii", b"\x1b[31m.nii"), b"=1+1," + line, line + b"," * 2000, b"[" * 3000, line + b"\r",
    ]  # fmt: skip
    lines[place] = draw.choice(soiled)
    return b"\n".join(lines)


FAULTS: dict[str, Callable[[Path, random.Random], None]] = {
    "truncated": _content(lambda content, draw: content[: draw.randrange(len(content) + 1)]),
    "bits flipped": _content(_flip),
    "bits flipped inside": _inside(_flip),
    "empty": _content(lambda content, draw: b""),
    "noise": _content(lambda content, draw: draw.randbytes(draw.choice([1, 352, 5000]))),
    "zeros": _content(lambda content, draw: bytes(len(content))),
    "text": _content(lambda content, draw: draw.choice([b"[]", b"null", b'"x"', b"{", b"[" * 100_000, b"1" * 5000])),
    "json edited": _content(_edit_json),
    "lines edited": _content(_edit_lines),
    "header edited": _inside(_header),
    "voxels edited": _inside(_voxels),
    "huge header": _nifti(fields={"dim": [3, 32767, 32767, 32767, 1, 1, 1, 1]}),
    "complex": _nifti(voxels=some_voxels((8, 8, 8), "<c8")),
    "text as voxels": _nifti(fields={"datatype": 2304}),
    "four axes": _nifti(voxels=some_voxels((8, 8, 8, 3))),
    "one voxel": _nifti(voxels=some_voxels((1, 1, 1))),
    "flat": _nifti(voxels=some_voxels((20, 20, 1))),
    "micrometres": _nifti(affine=np.diag([1000.0, 1000, 1000, 1])),
    "no affine": _nifti(affine=None),
    "missing": _instead(lambda path: None),
    "fifo": _instead(lambda path: os.mkfifo(path, 0o666)),
    "null device": _instead(lambda path: _node(path, 3)),
    "zero device": _instead(lambda path: _node(path, 5)),
    "folder": _instead(lambda path: path.mkdir()),
    "link in a circle": _instead(lambda path: path.symlink_to(path.name)),
    "broken link": _instead(lambda path: path.symlink_to("nowhere")),
    "link to a twin": lambda path, draw: _twin(path),
    "link out": _instead(lambda path: path.symlink_to("/etc/passwd")),
    "folder in a circle": lambda path, draw: (path.parent / "round").symlink_to(".."),
    "unreadable": lambda path, draw: path.chmod(0),
    "folder unreadable": lambda path, draw: path.parent.chmod(0),
    "folder without entry": lambda path, draw: path.parent.chmod(0o444),
    "odd name": lambda path, draw: _rename(path, draw.choice(["\x1b[31m", "a\nb", "\udcff", "é", "sub-9_", "%s", "="])),
    "another of its kind": lambda path, draw: _swap(path, draw),
}
"""What can be wrong with a file of an input, done to it in place."""


def _node(path: Path, minor: int) -> None:
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, minor))
    path.chmod(0o666)


def _twin(path: Path) -> None:
    others = [other for other in files_below(path.parent) if other.suffix == path.suffix and other != path]
    path.unlink()
    path.symlink_to(others[0].name if others else "nowhere")


def _rename(path: Path, name: str) -> None:
    path.rename(path.with_name(name + path.name))


def _swap(path: Path, draw: random.Random) -> None:
    others = [other for other in files_below(path.parents[1]) if other.suffix == path.suffix and not other.is_symlink()]
    if others:
        shutil.copyfile(draw.choice(others), path)


OUTPUTS = {
    "new": "@/out/new",
    "nested": "@/out/a/b/new",
    "slash": "@/out/new/",
    "empty": "@/out/empty",
    "foreign": "@/out/foreign",
    "file": "@/out/file",
    "under a file": "@/out/file/new",
    "fifo": "@/out/fifo",
    "null device": "@/out/null",
    "full device": "@/out/full",
    "link": "@/out/link",
    "broken link": "@/out/broken",
    "circle": "@/out/circle",
    "read-only": "@/out/read-only/new",
    "long": "@/out/" + "x" * 300,
    "deep": "@/out/" + "/".join(["d" * 200] * 25),
    "odd name": "@/out/\x1b[31m a\nb \udcff=é",
    "small disk": "@/out/disk/new",
    "very small disk": "@/out/disk/new",
    "dataset": "@/in/dataset",
    "in dataset": "@/in/dataset/derivatives/new",
    "another dataset": "@/out/other-dataset",
    "another run": "@/out/other-run",
    "another evaluation": "@/out/other-evaluation",
    "nothing": "",
    "here": ".",
    "proc": "/proc/new",
}
"""Where a call is told to write, by what stands there before."""

ENDINGS = ("", ".nii.gz", ".html", ".json")
"""What a verb may put behind the name of its output."""


def possible_outputs() -> list[str]:
    """Return the kinds of output that this user can make: devices and disks are for root."""
    return sorted(kind for kind in OUTPUTS if os.geteuid() == 0 or not kind.endswith(("device", "disk")))


def make_output(kind: str, folder: Path, world: Path) -> None:
    """Put what `OUTPUTS` names into the folder @/out.

    Files and devices are there with each of the endings, since a verb may be given any of them.
    """
    if kind == "empty":
        (folder / "empty").mkdir()
    elif kind == "foreign":
        for ending in ENDINGS:
            (folder / f"foreign{ending}").mkdir()
            (folder / f"foreign{ending}" / "keep.txt").write_text("mine")
    elif kind in ("file", "under a file"):
        (folder / "file").write_text("mine")
    elif kind == "fifo":
        os.mkfifo(folder / "fifo", 0o666)
    elif kind in ("null device", "full device"):
        for ending in ENDINGS:
            _node(folder / f"{kind.split()[0]}{ending}", 3 if kind == "null device" else 7)
    elif kind == "link":
        (folder / "target").mkdir()
        (folder / "link").symlink_to("target")
    elif kind in ("broken link", "circle"):
        for ending in ENDINGS:
            name = f"{kind.split()[0]}{ending}"
            (folder / name).symlink_to(f"nowhere{ending}" if kind == "broken link" else name)
    elif kind == "read-only":
        (folder / "read-only").mkdir()
    elif kind in ("small disk", "very small disk"):
        (folder / "disk").mkdir()
        size = "size=300k" if kind == "small disk" else "size=16k"
        subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder / "disk")], check=True)
    elif kind.startswith("another "):
        name = kind.removeprefix("another ")
        shutil.copytree(world / name, folder / f"other-{name}")


def give_away(folder: Path) -> None:
    """Make a folder another user's."""
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)


def protected(kind: str, verb: str) -> tuple[str, ...]:
    """Return names below @/out that a call must leave as they are."""
    names = ["foreign", "file", "null", "full"] + [
        f"{name}{end}" for name in ("foreign", "null", "full") for end in ENDINGS
    ]
    own = {"another run": "train", "another evaluation": "evaluate"}
    if kind.startswith("another ") and own.get(kind) != verb:
        names.append(f"other-{kind.removeprefix('another ')}")
    return tuple(names)
