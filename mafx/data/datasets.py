"""Data sets by name: the clips of a split, wherever they come from."""

from pathlib import Path

import ml_collections

from mafx.data.clips import Clip, FolderClip, puppet_clips
from mafx.errors import InputError

PREPARED = ("tiktok", "ted_talks", "clips", "images")  # once, by mafx.data.builders
DATASETS = ("puppets", "folder", *PREPARED)


def find_clips(settings: ml_collections.ConfigDict, split: str) -> list[Clip]:
    """The clips of "train" or "test".

    `settings` has `name` and `path`. "puppets" are drawn, `train_clips` and `test_clips` of them, in `size`; "folder" is one clip, whose frames from
    `train_frames` on are the test; all others lie prepared under `path`.
    """
    if settings.name == "puppets":
        return puppet_clips(split, settings[f"{split}_clips"], tuple(settings.size))
    if settings.name == "folder":
        if not settings.train_frames:
            raise InputError(
                "config.data.train_frames: expected how many of the folder's frames are for training, found nothing"
            )
        first, last = {"train": (0, settings.train_frames), "test": (settings.train_frames, None)}[split]
        return [FolderClip(Path(settings.path), first, last)]
    from mafx.data.builders import record_clips  # noqa: PLC0415 (slow to import)

    return record_clips(settings.name, Path(settings.path), split)
