"""Data sets prepared once, by tensorflow-datasets but without TensorFlow: TikTok, TED talks, clips of your own, an image set.

    python -m mafx.data.builders tiktok --manual_dir DOWNLOADED --data_dir DATA

A record is a frame with its render, a shard is a clip (or 256 images): a reader opens one file and takes the frames it wants. What is left out, and
why, stands in `report.json` beside the records.
"""

import abc
import argparse
import dataclasses
import functools
import io
import json
import logging
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from tqdm.auto import tqdm

from mafx import media
from mafx.data.raw import Raw, examples, find_pictures, find_raw, stage
from mafx.errors import InputError

IMAGES_PER_SHARD = 256
FEATURES = tfds.features.FeaturesDict(
    {"image": tfds.features.Image(), "motion": tfds.features.Image(), "clip": tfds.features.Text(), "frame": np.int32}
)
log = logging.getLogger("mafx")


# -- Builders


class Records(tfds.core.ShardBasedBuilder, skip_registration=True):
    """What the data sets share. MANUAL_DOWNLOAD_INSTRUCTIONS says what `find` looks for."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos = (
        None  # nothing is downloaded, and to find that out tensorflow-datasets needs a package it does not install
    )
    min_frames = 16

    @abc.abstractmethod
    def find(self, folder: Path) -> dict[str, list[Raw]]:
        """The clips of each split."""

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, features=FEATURES)

    @property
    def staging(self) -> Path:
        return Path(self.data_dir_root) / f"{self.name}.staging"

    def _shard_iterators_per_split(self, dl_manager):
        folder = Path(dl_manager.manual_dir)
        raws = [
            (split, raw, self.staging / split / f"{raw.name}.zip")
            for split, found in self.find(folder).items()
            for raw in found
        ]
        if not raws:
            raise InputError(f"expected {self.MANUAL_DOWNLOAD_INSTRUCTIONS} in {folder}, found none of that")
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            done = pool.map(lambda x: stage(*x[1:]), raws)
            staged = list(tqdm(done, f"{self.name}, checking", len(raws), unit="clip"))
        shards, clips, left_out = {}, {}, []
        for (split, raw, path), result in zip(raws, staged, strict=True):
            kept, reasons = result["kept"], result["left_out"]
            if len(kept) < self.min_frames:
                reasons.append((None, f"expected at least {self.min_frames} good frames in a row, found {len(kept)}"))
            else:
                shards.setdefault(split, []).append(functools.partial(examples, raw, path, kept))
                clips.setdefault(split, []).extend([name for _, name in kept] if raw.kind == "images" else [raw.name])
            left_out += [
                {"split": split, "clip": raw.name, "frame": frame, "reason": reason} for frame, reason in reasons
            ]
        if not shards:
            raise InputError(f"expected clips in {folder} that can be used, found none: {summary(left_out)}")
        report = {"min_frames": self.min_frames, "clips": clips, "left_out": left_out}
        (self.data_path / "report.json").write_text(json.dumps(report, indent=1))
        # tensorflow-datasets shows no progress of its own here.
        return {
            split: tqdm(found, f"{self.name}, {split}", unit="shard", delay=1e-3) for split, found in shards.items()
        }


def summary(left_out: list[dict]) -> str:
    """What was first left out of each of the first three clips."""
    first = {}
    for x in left_out:
        first.setdefault(x["clip"], f"{x['clip']}{'' if x['frame'] is None else '/' + x['frame']}: {x['reason']}")
    return "; ".join([*first.values()][:3]) + f"; and of {len(first) - 3} more" * (len(first) > 3)


class TikTok(Records):
    """Dances (Jafarian and Park, 2021), split as by DisCo."""

    name = "tiktok"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "TikTok_dataset/00001/images/0001.png, TikTok_dataset/00001/densepose/0001.png and so on"
    )

    def find(self, folder: Path) -> dict[str, list[Raw]]:
        clips = [raw for raw in find_raw(inside(folder, "TikTok_dataset"), "iuv") if raw.name.isdigit()]
        return {
            "train": [raw for raw in clips if int(raw.name) <= 334],
            "test": [raw for raw in clips if int(raw.name) > 334],
        }


class TedTalks(Records):
    """Speakers (Siarohin et al., 2021)."""

    name = "ted_talks"
    MANUAL_DOWNLOAD_INSTRUCTIONS = "TED384-v2/train/ and TED384-v2/test/ with NAME.mp4 beside NAME_densepose.mp4"

    def find(self, folder: Path) -> dict[str, list[Raw]]:
        folder = inside(folder, "TED384-v2")
        return {split: find_raw(folder / split) for split in ("train", "test") if (folder / split).is_dir()}


class Clips(Records):
    """Clips of one's own. Where they are not split already, every tenth is for testing, or else the last."""

    name = "clips"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "folders with images/ and densepose/, or NAME.mp4 beside NAME_densepose.mp4, or train/ and test/ with such"
    )

    def find(self, folder: Path) -> dict[str, list[Raw]]:
        if all((folder / split).is_dir() for split in ("train", "test")):
            return {split: find_raw(folder / split) for split in ("train", "test")}
        clips = find_raw(folder)
        if len(clips) == 1:
            raise InputError(
                f'expected clips to train on and to test with in {folder}, found one; give it as the data set "folder" of the config'
            )
        tested = clips[9::10] or clips[-1:]
        return {"train": [raw for raw in clips if raw not in tested], "test": tested}


class Images(Records):
    """Pictures for joint training, all in "train"."""

    name = "images"
    MANUAL_DOWNLOAD_INSTRUCTIONS = "images/NAME.png and densepose/NAME.png, or other kinds of pictures"
    min_frames = 1

    def find(self, folder: Path) -> dict[str, list[Raw]]:
        halves = [find_pictures(folder / half) for half in ("images", "densepose")]
        names = sorted({name for half in halves for name in half})
        shards = [names[i : i + IMAGES_PER_SHARD] for i in range(0, len(names), IMAGES_PER_SHARD)]
        share = lambda shard: ({name: half[name] for name in shard if name in half} for half in halves)  # noqa: E731
        return {"train": [Raw(f"images-{i:05d}", "images", *share(shard)) for i, shard in enumerate(shards)]}


def inside(folder: Path, name: str) -> Path:
    """The folder of this name in `folder`, or `folder`."""
    return folder / name if (folder / name).is_dir() else folder


BUILDERS = {builder.name: builder for builder in (TikTok, TedTalks, Clips, Images)}


def find_builder(name: str, data_dir: Path) -> Records:
    if name not in BUILDERS:
        raise InputError(f"data set {name!r} is unknown, expected one of {', '.join(BUILDERS)}")
    return BUILDERS[name](data_dir=data_dir, file_format="array_record")


def prepare(name: str, manual_dir: Path, data_dir: Path, min_frames: int = 16) -> Records:
    """Make records under `data_dir` of what lies in `manual_dir`, unless they are there.

    Clips with fewer than `min_frames` good frames in a row are left out; an image is always enough. InputError where nothing is left. The folder may
    be read by tensorflow-datasets alone: features `image`, `motion` (the render), `clip` (its name), `frame` (its number in the raw clip, from 0).
    """
    builder = find_builder(name, data_dir)
    if builder.is_prepared():
        log.info("%s is there already: %s. Delete that folder to prepare it anew.", name, builder.data_dir)
        return builder
    if not manual_dir.is_dir() or not any(manual_dir.iterdir()):
        found = "an empty folder" if manual_dir.is_dir() else "no folder"
        raise InputError(f"expected {builder.MANUAL_DOWNLOAD_INSTRUCTIONS} in {manual_dir}, found {found}")
    if name != "images":
        builder.min_frames = max(1, min_frames)
    config = tfds.download.DownloadConfig(manual_dir=manual_dir)
    try:
        for killed in builder.data_path.parent.glob(
            "incomplete.*"
        ):  # half of the records, where a preparation could not clean up
            killed.rmtree()
        builder.download_and_prepare(download_dir=builder.staging / "downloads", download_config=config)
        shutil.rmtree(builder.staging)
    except OSError as error:
        raise InputError(f"cannot prepare {name} in {data_dir}: {error}") from error
    report = read_report(builder)
    log.info(
        "Prepared %s: %s clips.",
        name,
        " and ".join(f"{len(clips)} {split}" for split, clips in report["clips"].items()),
    )
    if report["left_out"]:
        log.warning("Left out, in full in %s: %s.", builder.data_path / "report.json", summary(report["left_out"]))
    return builder


def read_report(builder: Records) -> dict:
    return json.loads((builder.data_path / "report.json").read_text())


# -- Reading


@dataclasses.dataclass(frozen=True)
class RecordClip:
    """A clip of a prepared data set: so many records of `shard`, from `first` on."""

    name: str
    frames: int
    shard: str
    first: int = 0
    fps: Fraction = media.DEFAULT_FPS

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Frames and renders, both uint8 `f H W 3`."""
        undecoded = {
            "image": tfds.decode.SkipDecoding(),
            "motion": tfds.decode.SkipDecoding(),
        }  # media reads more kinds of pictures
        records = range(self.first, self.first + self.frames)
        serialized = open_shard(self.shard).__getitems__([records[i] for i in indices])
        found = [FEATURES.deserialize_example_np(x, decoders=undecoded) for x in serialized]
        video, motion = (
            np.stack([media.read_image(io.BytesIO(x[kind])) for x in found]) for kind in ("image", "motion")
        )
        return video, motion


@functools.lru_cache(maxsize=64)  # each holds a file open, of which a process may have a thousand or so
def open_shard(path: str) -> ArrayRecordDataSource:
    return ArrayRecordDataSource(path)


def record_clips(name: str, data_dir: Path, split: str) -> list[RecordClip]:
    """The clips of a split of a prepared data set."""
    builder = find_builder(name, data_dir)
    if not builder.is_prepared():
        command = f"python -m mafx.data.builders {name} --manual_dir DOWNLOADED --data_dir {data_dir}"
        raise InputError(f"expected {name} prepared in {data_dir}, found nothing; run {command}")
    clips = read_report(builder)["clips"]
    if split not in clips:
        raise InputError(
            f"expected clips to {split} with in {builder.data_dir}, found only some to {' and '.join(clips)} with"
        )
    names, info, found = iter(clips[split]), builder.info.splits[split], []
    for path, length in zip(info.filepaths, info.shard_lengths, strict=True):
        frames = 1 if name == "images" else length
        found += [RecordClip(next(names), frames, str(path), first) for first in range(0, length, frames)]
    return found


def main(arguments: list[str] | None = None) -> int:
    """The command's exit status."""
    parser = argparse.ArgumentParser(prog="python -m mafx.data.builders", description="Prepare a data set.")
    parser.add_argument("name", help=", ".join(BUILDERS))
    parser.add_argument("--manual_dir", type=Path, required=True, help="what was downloaded")
    parser.add_argument("--data_dir", type=Path, required=True, help="where the records go")
    parser.add_argument("--min_frames", type=int, default=16, help="shorter clips are left out")
    given = vars(parser.parse_args(arguments))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        prepare(**given)
    except InputError as error:
        print(f"mafx.data.builders: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
