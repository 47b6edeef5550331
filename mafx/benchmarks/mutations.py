"""Changes of real files that make them broken or hostile, drawn from a seed."""

import copy
import io
import json
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Change = Callable[[bytes, np.random.Generator], bytes]
NUMBERS = (0, 1, 2, 3, 7, 255, 65535, 2**31 - 1, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1)
PNG = b"\x89PNG\r\n\x1a\n"
PIECE = 64  # bytes that are moved at once, at most


def mutate(folder: Path, rng: np.random.Generator) -> Path:
    """Change one file of a folder, in its bytes, in its JSON, in a member of its zip, or in what kind of file it is.

    Args:
      folder: What is changed in place.
      rng: Draws the file and the change.

    Returns:
      The file that was changed; it may be gone.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = files[rng.integers(len(files))]
    if rng.random() < 0.03:
        _replace(path, rng)
    else:
        path.write_bytes(mutate_bytes(path.read_bytes(), rng))
    return path


def mutate_bytes(content: bytes, rng: np.random.Generator) -> bytes:
    """Change the content of a file: what it says where it is JSON, a member where it is a zip, else its bytes."""
    if content[:4] == b"PK\x03\x04" and rng.random() < 0.7:
        return _in_zip(content, rng)
    if content[:1] in (b"{", b"[") and rng.random() < 0.8:
        return _in_json(content, rng)
    if content[8:9] == b"{" and rng.random() < 0.6:
        return _in_header(content, rng)
    for _ in range(rng.integers(1, 4)):
        change = CHANGES[rng.integers(len(CHANGES))]
        content = change(content, rng) if content else bytes(rng.bytes(8))
    return _with_checksums(content) if content.startswith(PNG) and rng.random() < 0.7 else content


def _with_checksums(content: bytes) -> bytes:
    """A PNG whose chunks have the right checksums, so that its readers look further than that."""
    fixed, place = content[:8], 8
    while place + 12 <= len(content):
        (size,) = struct.unpack(">I", content[place : place + 4])
        named = content[place + 4 : place + 8 + size]
        fixed += content[place : place + 4] + named + struct.pack(">I", zlib.crc32(named))
        place += 12 + size
    return fixed


# -- Bytes


def _place(content: bytes, rng: np.random.Generator) -> int:
    """A place in the content; every second one is near its beginning, where headers are."""
    return int(rng.integers(min(len(content), 128) if rng.random() < 0.5 else len(content)))


def _flip_bit(content: bytes, rng: np.random.Generator) -> bytes:
    place = _place(content, rng)
    return content[:place] + bytes([content[place] ^ 1 << rng.integers(8)]) + content[place + 1 :]


def _overwrite(content: bytes, rng: np.random.Generator) -> bytes:
    place, piece = _place(content, rng), rng.bytes(int(rng.integers(1, PIECE)))
    return content[:place] + piece + content[place + len(piece) :]


def _write_number(content: bytes, rng: np.random.Generator) -> bytes:
    place, size = _place(content, rng), int(rng.choice([1, 2, 4, 8]))
    number = NUMBERS[rng.integers(len(NUMBERS))] % 256**size
    return content[:place] + number.to_bytes(size, rng.choice(["little", "big"])) + content[place + size :]


def _cut(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: _place(content, rng)]


def _remove(content: bytes, rng: np.random.Generator) -> bytes:
    place = _place(content, rng)
    return content[:place] + content[place + rng.integers(1, PIECE) :]


def _repeat(content: bytes, rng: np.random.Generator) -> bytes:
    place = _place(content, rng)
    piece = content[place : place + rng.integers(1, PIECE)] * int(rng.choice([1, 2, 100, 1000]))
    return content[:place] + piece + content[place:]


def _move(content: bytes, rng: np.random.Generator) -> bytes:
    source, target, size = _place(content, rng), _place(content, rng), rng.integers(1, PIECE)
    return content[:target] + content[source : source + size] + content[target + size :]


CHANGES: tuple[Change, ...] = (_flip_bit, _overwrite, _write_number, _write_number, _cut, _remove, _repeat, _move)


# -- JSON


VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 3, 1.5, -0.0, 1e308, 10**9, 2**31, 2**63, 10**40, float("nan"), float("inf")),
    *("", "a", "0", "\ud800", "\x00", "a\nb", "../../a", "/etc/passwd", "x" * 10_000, "linear", "midup"),
    *([], {}, [0], [[]], {"a": 1}, [1] * 49, [32] * 1000, ["a"] * 3, [None, 1]),
)


def _in_json(content: bytes, rng: np.random.Generator) -> bytes:
    """Change some values of JSON; lines of JSON are changed line by line."""
    lines = content.splitlines() if content.count(b"\n{") else [content]
    chosen = rng.integers(len(lines))
    try:
        value = json.loads(lines[chosen])
    except ValueError:
        return _overwrite(content, rng)
    for _ in range(rng.integers(1, 3)):
        value = _change_value(value, rng)
    lines[chosen] = json.dumps(value).encode()
    if rng.random() < 0.03:
        lines[chosen] = b'{"a":' * 10**5 + lines[chosen]
    return b"\n".join(lines) + b"\n"


def _change_value(value: Any, rng: np.random.Generator) -> Any:
    """A copy with one value inside replaced, removed, doubled or renamed."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.1:
        return copy.deepcopy(VALUES[rng.integers(len(VALUES))])
    value = copy.copy(value)
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key: Any = keys[rng.integers(len(keys))]
    what = rng.random()
    if what < 0.1:
        del value[key]
    elif what < 0.2 and isinstance(value, dict):
        value[str(VALUES[rng.integers(len(VALUES))])] = value.pop(key)
    elif what < 0.3 and isinstance(value, list):
        value.append(value[key])
    else:
        value[key] = _change_value(value[key], rng)
    return value


def _in_header(content: bytes, rng: np.random.Generator) -> bytes:
    """Change the JSON of a safetensors file, with the length that stands before it."""
    length = int.from_bytes(content[:8], "little")
    header = mutate_bytes(content[8 : 8 + length], rng)
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


# -- Zips


def _in_zip(content: bytes, rng: np.random.Generator) -> bytes:
    """Change a member of a zip, mostly the smallest, and write the zip anew, so that its checksums are right."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    except Exception:  # a zip that an earlier change has broken
        return _overwrite(content, rng)
    names = sorted(members, key=lambda name: len(members[name]))
    named = [name for name in names if name.endswith((".pkl", ".json"))] or names
    chosen = named[0] if rng.random() < 0.7 else names[rng.integers(len(names))]
    members[chosen] = mutate_bytes(members[chosen], rng)
    if rng.random() < 0.05:
        members[chosen] = bytes(10**7)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED if rng.random() < 0.1 else zipfile.ZIP_STORED) as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return packed.getvalue()


# -- Kinds of files


def _replace(path: Path, rng: np.random.Generator) -> None:
    """Something else in the place of a file."""
    what = rng.integers(7)
    content = path.read_bytes()
    path.unlink()
    if what == 1:
        path.mkdir()
    elif what == 2:
        os.mkfifo(path)
    elif what == 3:
        path.symlink_to("/dev/zero")
    elif what == 4:
        path.symlink_to(path)
    elif what == 5:
        path.write_bytes(b"")
    elif what == 6:
        elsewhere = path.parent.parent / "elsewhere"
        elsewhere.write_bytes(content)
        path.symlink_to(elsewhere)


def copy_tree(source: Path, target: Path) -> None:
    """A fresh copy of a folder in the place of what is there."""
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(source, target)
