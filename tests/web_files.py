"""Files that people might upload, good and hostile ones."""

import struct
import zlib

import numpy as np
from micro import example
from PIL import Image

from mafx import media


def png_header(rows, columns):
    """A PNG that claims a size, without any pixel."""
    header = b"IHDR" + struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)
    end = b"IEND"
    chunks = (struct.pack(">I", len(x) - 4) + x + struct.pack(">I", zlib.crc32(x)) for x in (header, end))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def write_files(folder):
    """A picture, a DensePose video, and a video of noise."""
    clip = example((48, 32), 9)
    Image.fromarray(clip.reference).save(folder / "person.png")
    media.write_video(folder / "motion.mp4", clip.motion, 15)
    noise = np.random.default_rng(0).integers(0, 256, (9, 48, 32, 3), np.uint8)
    media.write_video(folder / "noise.mp4", noise, 15)
    return folder
