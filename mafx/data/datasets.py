"""Data sets by name: the clips of a split, wherever they come from."""

from collections.abc import Callable, Sequence
from pathlib import Path

import ml_collections

from mafx.commands import expand_home
from mafx.data.clips import Clip, FolderClip, puppet_clips, puppet_images
from mafx.data.layouts import LAYOUTS
from mafx.errors import InputError
from mafx.puppets import HIDDEN


def _puppet_clips(settings: ml_collections.ConfigDict, split: str) -> Sequence[Clip]:
    rows, columns = settings.size
    count = settings.get(f"{split}_clips")
    if count is None:
        raise InputError(f"config.data.{split}_clips: expected a number of puppets, found nothing")
    return puppet_clips(split, count, (rows, columns), hidden=settings.get("hidden", HIDDEN))


def _find_folder(settings: ml_collections.ConfigDict, what: str) -> Path:
    """The folder that a config names; an image set has no size of its own."""
    if not settings.path:
        field = "config.data.path" if "size" in settings else "config.images.path"
        raise InputError(f"{field}: expected {what}, found nothing; give it by --{field} FOLDER")
    return expand_home(settings.path)


def _folder_clips(settings: ml_collections.ConfigDict, split: str) -> Sequence[Clip]:
    """One clip, divided in time."""
    folder = _find_folder(settings, "a folder with images/ and densepose/")
    if not settings.train_frames:
        raise InputError(
            "config.data.train_frames: expected how many of the folder's frames are for training, found nothing"
        )
    first, last = {"train": (0, settings.train_frames), "test": (settings.train_frames, None)}[split]
    return [FolderClip(folder, first, last)]


def _prepared_clips(settings: ml_collections.ConfigDict, split: str) -> Sequence[Clip]:
    from mafx.data.builders import record_clips  # noqa: PLC0415 (imports tensorflow-datasets, which is slow)

    made = f"the folder that python -m mafx.data.builders {settings.name} was given as --data_dir"
    return record_clips(settings.name, _find_folder(settings, made), split)


_FINDERS: dict[str, Callable[[ml_collections.ConfigDict, str], Sequence[Clip]]] = {
    "puppets": _puppet_clips,
    "folder": _folder_clips,
    **dict.fromkeys(LAYOUTS, _prepared_clips),
}
DATASETS = tuple(_FINDERS)
PREPARED = tuple(LAYOUTS)  # those that mafx.data.builders makes
IMAGE_SETS = ("puppets", *PREPARED)


def find_clips(settings: ml_collections.ConfigDict, split: str) -> list[Clip]:
    """Find the clips of a split.

    Args:
      settings: `name`, one of `DATASETS`, and what this data set needs: "puppets" the `size`, the numbers
        `train_clips` and `test_clips`, and perhaps the share `hidden`; "folder" a `path` and `train_frames`, the number
        of frames before those of the test; all others the `path` under which they were prepared.
      split: "train" or "test".

    Returns:
      The clips, which are read when they are used.

    Raises:
      InputError: The data set is not there, or a setting is missing.
    """
    if settings.name not in _FINDERS:
        raise InputError(f"data set {settings.name!r} is unknown, expected one of {', '.join(DATASETS)}")
    return list(_FINDERS[settings.name](settings, split))


def find_images(config: ml_collections.ConfigDict) -> list[Clip]:
    """Find the image set of a training run: clips of one frame, of which "puppets" are drawn as large as the clips.

    Args:
      config: Its `images`, and its `data`.

    Raises:
      InputError: The image set is not there, or a setting is missing.
    """
    if config.images.name != "puppets":
        return find_clips(config.images, "train")
    rows, columns = config.data.size
    return list(puppet_images(config.images.count, (rows, columns), config.data.hidden))
