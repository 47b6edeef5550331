"""The data sets that are prepared once, and the folders in which they are downloaded.

To add a data set, add a row to `LAYOUTS`: the builders of mafx.data.builders and the names of mafx.data.datasets come
from this table.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from mafx.data.clips import HALVES
from mafx.data.raw import Raw, find_pictures, find_raw
from mafx.errors import InputError

SPLITS = ("train", "test")
IMAGES_PER_SHARD = 256
LAST_TIKTOK_CLIP = 334  # of training; DisCo tests with the clips after it
HELD_OUT_PERIOD = 10  # every tenth of one's own clips is for testing

Splits = dict[str, list[Raw]]


@dataclasses.dataclass(frozen=True)
class Layout:
    """A data set as it is downloaded.

    Attributes:
      name: Of the data set.
      files: What `find` looks for, as an error message says it.
      find: Gives the clips of each split in the folder of a download.
      single_frames: Whether each picture is a clip of its own, instead of a frame of one.
    """

    name: str
    files: str
    find: Callable[[Path], Splits]
    single_frames: bool = False


def _find_tiktok(folder: Path) -> Splits:
    """Dances (Jafarian and Park, 2021), split as by DisCo."""
    clips = [raw for raw in find_raw(_inside(folder, "TikTok_dataset"), "iuv") if raw.name.isdigit()]
    return {
        "train": [raw for raw in clips if int(raw.name) <= LAST_TIKTOK_CLIP],
        "test": [raw for raw in clips if int(raw.name) > LAST_TIKTOK_CLIP],
    }


def _find_ted_talks(folder: Path) -> Splits:
    """Speakers (Siarohin et al., 2021)."""
    folder = _inside(folder, "TED384-v2")
    return {split: find_raw(folder / split) for split in SPLITS if (folder / split).is_dir()}


def _find_clips(folder: Path) -> Splits:
    """One's own clips. If they are not split already, every tenth is for testing; of fewer, the last."""
    if all((folder / split).is_dir() for split in SPLITS):
        return {split: find_raw(folder / split) for split in SPLITS}
    clips = find_raw(folder)
    if len(clips) == 1:
        raise InputError(
            f"expected clips to train on and to test with in {folder}, found one; "
            'give it as the data set "folder" of the config'
        )
    test = clips[HELD_OUT_PERIOD - 1 :: HELD_OUT_PERIOD] or clips[-1:]
    return {"train": [raw for raw in clips if raw not in test], "test": test}


def _find_images(folder: Path) -> Splits:
    """Pictures for joint training, all in "train"."""
    images, renders = (find_pictures(folder / half) for half in HALVES)
    names = sorted(images.keys() | renders.keys())
    shards: list[Raw] = []
    for start in range(0, len(names), IMAGES_PER_SHARD):
        shard = names[start : start + IMAGES_PER_SHARD]
        halves = ({name: half[name] for name in shard if name in half} for half in (images, renders))
        shards.append(Raw(f"images-{len(shards):05d}", "images", *halves))
    return {"train": shards}


def _inside(folder: Path, name: str) -> Path:
    """The folder of this name in `folder` if there is one, else `folder`."""
    return folder / name if (folder / name).is_dir() else folder


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout(
            name="tiktok",
            files="TikTok_dataset/00001/images/0001.png, TikTok_dataset/00001/densepose/0001.png and so on",
            find=_find_tiktok,
        ),
        Layout(
            name="ted_talks",
            files="TED384-v2/train/ and TED384-v2/test/ with NAME.mp4 beside NAME_densepose.mp4",
            find=_find_ted_talks,
        ),
        Layout(
            name="clips",
            files="folders with images/ and densepose/, or NAME.mp4 beside NAME_densepose.mp4, "
            "or train/ and test/ with such",
            find=_find_clips,
        ),
        Layout(
            name="images",
            files="images/NAME.png and densepose/NAME.png, or other kinds of pictures",
            find=_find_images,
            single_frames=True,
        ),
    )
}
