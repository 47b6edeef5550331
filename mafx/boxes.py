"""The boxes of MP4 and QuickTime files, as far as they can make a decoder take gigabytes.

FFmpeg makes an entry of its index for each sample that a table announces, before it looks for the samples: a file of
three kilobytes can announce a thousand million. Source: ISO/IEC 14496-12, sections 4.2, 8.7.3 and 8.8.8.
"""

import mmap
import re
import struct
from collections.abc import Iterator
from pathlib import Path

from mafx.errors import InputError

PLAIN = (b"mdat", b"free", b"skip", b"wide")  # boxes whose contents are no tables
TABLES = re.compile(b"stsz|stz2|trun|cmov")
BITS_PER_SAMPLE = 4  # the fewest that are believed, of old sound


def check_tables(path: Path) -> None:
    """Refuse a file with tables of more samples than it can hold.

    Args:
      path: Any file that is not empty. One of another kind passes, unless it looks like such a table by chance, which
        is looked for outside of pictures and sound only.

    Raises:
      InputError: There is such a table, or a compressed one.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for start, end in _parts_with_tables(data):
            for match in TABLES.finditer(data, start, end):
                if match[0] == b"cmov":
                    raise InputError(f"{path} has compressed tables, which could be of any size; convert it")
                count = _sample_count(match[0], data[match.end() : match.end() + 12])
                if count * BITS_PER_SAMPLE > 8 * len(data):
                    raise InputError(f"{path} announces {count} samples in {len(data)} bytes: it is damaged")


def _parts_with_tables(data: mmap.mmap) -> Iterator[tuple[int, int]]:
    """Where boxes with tables begin and end. What is no box is one that reaches to the end."""
    start = 0
    while start + 8 <= len(data):
        size, kind = struct.unpack(">I4s", data[start : start + 8])
        if size == 1 and start + 16 <= len(data):
            (size,) = struct.unpack(">Q", data[start + 8 : start + 16])
        if size < 8:
            size = len(data)
        end = min(start + size, len(data))
        if kind not in PLAIN:
            yield start, end
        start = end


def _sample_count(kind: bytes, fields: bytes) -> int:
    """What a table announces; its fields begin with version and flags. 0 where the file ends within them."""
    if len(fields) < 12:
        return 0
    _, first, second = struct.unpack(">III", fields)
    if kind == b"stsz":
        return second * max(first, 1)  # a size that all samples have, and how many there are
    return second if kind == b"stz2" else first
