import struct

import numpy as np
import pytest

from mafx import media
from mafx.boxes import check_tables
from mafx.errors import InputError


@pytest.fixture
def video(tmp_path):
    media.write_video(tmp_path / "v.mp4", np.zeros((5, 16, 16, 3), np.uint8), 10)
    return tmp_path / "v.mp4"


def announce(path, samples):
    """Let the tables say that all samples have one byte and lie in one chunk."""
    content = bytearray(path.read_bytes())
    sizes, chunks, times = (content.index(kind) for kind in (b"stsz", b"stsc", b"stts"))
    struct.pack_into(">II", content, sizes + 8, 1, samples)
    struct.pack_into(">I", content, chunks + 16, samples)
    struct.pack_into(">I", content, times + 12, samples)
    path.write_bytes(content)


def test_a_whole_file_passes(video):
    check_tables(video)


def test_samples_that_no_file_of_this_size_can_hold(video):
    """FFmpeg would take 3.6 GB for the index of these."""
    announce(video, 50_000_000)
    with pytest.raises(InputError, match=r"v.mp4 announces 50000000 samples in \d+ bytes"):
        media.read_video(video)


def test_samples_of_a_fragment(video):
    video.write_bytes(video.read_bytes() + struct.pack(">I4sI4sIII", 28, b"moof", 20, b"trun", 0, 2**30, 0))
    with pytest.raises(InputError, match="announces 1073741824 samples"):
        check_tables(video)


def test_compressed_tables(video):
    video.write_bytes(struct.pack(">I4sI4s", 16, b"moov", 8, b"cmov"))
    with pytest.raises(InputError, match="compressed tables"):
        media.read_video(video)


def test_pictures_and_sound_are_not_looked_into(video):
    content = video.read_bytes()
    hidden = b"cmov" + b"trun" + struct.pack(">III", 0, 2**30, 0)
    video.write_bytes(content + struct.pack(">I4s", 8 + len(hidden), b"mdat") + hidden)
    check_tables(video)
    large = struct.pack(">I4sQ", 1, b"mdat", 16 + len(hidden)) + hidden
    video.write_bytes(large + content)
    check_tables(video)
