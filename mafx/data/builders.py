"""Prepare a data set: TikTok, TED talks, one's own clips, or a set of images.

    python -m mafx.data.builders tiktok --manual_dir DOWNLOADED --data_dir DATA

The records are made by tensorflow-datasets, without TensorFlow. A record is a frame with its render, and a shard is a
clip, or 256 images: a reader opens one file and takes the frames that it wants. `report.json`, beside the records, says
what was left out and why.

Plain videos and photographs, without renders, are drawn with --poses. Where that takes long, several processes share
it, on one machine or many: the same command with --distributed, as train.py takes it.
"""

import argparse
import contextlib
import dataclasses
import functools
import io
import itertools
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from tqdm.auto import tqdm

from mafx import media
from mafx.commands import Parser, add_process_flags, join_processes, run_command
from mafx.data.drawing import WHOLE, Share, draw_missing, finder_options
from mafx.data.layouts import LAYOUTS, Layout
from mafx.data.raw import Raw
from mafx.data.staging import Staged, stage
from mafx.errors import InputError, refusals
from mafx.files import check_inside, check_name, check_regular, check_tree, read_json
from mafx.interrupts import GOES_ON, advice_at_interrupt
from mafx.limits import add_limit_flags, set_limits
from mafx.stamps import hash_of

NAME = "python -m mafx.data.builders"
MIN_FRAMES = 16
SHOWN_LEFT_OUT = 3  # clips of which a message names the first thing that was left out
REPORT_FILE = "report.json"
OPEN_SHARDS = 64  # files that a process keeps open, of the thousand or so that it may
FEATURES = tfds.features.FeaturesDict(
    {"image": tfds.features.Image(), "motion": tfds.features.Image(), "clip": tfds.features.Text(), "frame": np.int32}
)
Shard = Callable[[], Iterator[tuple[int, dict[str, Any]]]]
log = logging.getLogger("mafx")


# -- Report


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """A frame that is not among the records, or a whole clip, where `frame` is None."""

    split: str
    clip: str
    frame: str | None
    reason: str


@dataclasses.dataclass(frozen=True)
class Report:
    """What a preparation made.

    Attributes:
      min_frames: Clips with fewer good frames in a row were left out.
      clips: Names of the clips of each split, in the order of their records.
      left_out: Everything else.
      source: A fingerprint of what was downloaded; empty in sets that were prepared before it was noted.
    """

    min_frames: int
    clips: dict[str, list[str]]
    left_out: list[LeftOut]
    source: str = ""

    def write(self, folder: Path) -> None:
        (folder / REPORT_FILE).write_text(json.dumps(dataclasses.asdict(self), indent=1))

    @classmethod
    def read(cls, folder: Path) -> "Report":
        """Raises InputError where there is none, or a name in it is none."""
        path = folder / REPORT_FILE
        report = read_json(path, cls)
        for name in itertools.chain(*report.clips.values()):
            check_name(name, path)
        return report


def summary(left_out: Iterable[LeftOut]) -> str:
    """What was left out first of each of the first three clips, and the number of the others."""
    first: dict[str, str] = {}
    for row in left_out:
        place = row.clip if row.frame is None else f"{row.clip}/{row.frame}"
        first.setdefault(row.clip, f"{place}: {row.reason}")
    shown = "; ".join(list(first.values())[:SHOWN_LEFT_OUT])
    more = len(first) - SHOWN_LEFT_OUT
    return f"{shown}; and of {more} more" if more > 0 else shown


# -- Builders


class Records(tfds.core.ShardBasedBuilder, skip_registration=True):  # type: ignore[call-arg] # it is not typed
    """The builder of any data set. Its subclasses set `layout`, and what tensorflow-datasets calls its name."""

    layout: Layout
    min_frames = MIN_FRAMES
    poses: str | None = None  # how clips without renders are drawn, see `drawing.finder_options`
    share = WHOLE
    VERSION = tfds.core.Version("1.0.0")
    # Nothing is downloaded. To find that out by itself, tensorflow-datasets needs a package that it does not install.
    url_infos = None

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, features=FEATURES)

    @property
    def staging(self) -> Path:
        """The folder of checked clips, until all records are written."""
        return Path(self.data_dir_root) / f"{self.name}.staging"

    def _shard_iterators_per_split(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterable[Shard]]:
        """Check all clips, and return the shards that are to be written."""
        folder = Path(dl_manager.manual_dir)
        accepted: list[tuple[str, Staged]] = []
        left_out: list[LeftOut] = []
        for split, clip in self._stage_clips(folder):
            left_out += [LeftOut(split, clip.raw.name, frame, reason) for frame, reason in clip.left_out]
            if len(clip.kept) >= self.min_frames:
                accepted.append((split, clip))
            else:
                reason = f"expected at least {self.min_frames} good frames in a row, found {len(clip.kept)}"
                left_out.append(LeftOut(split, clip.raw.name, None, reason))
        if not accepted:
            raise InputError(f"expected clips in {folder} that can be used, found none: {summary(left_out)}")
        clips: dict[str, list[str]] = {}
        shards: dict[str, list[Shard]] = {}
        for split, clip in accepted:
            names = [name for _, name in clip.kept] if self.layout.single_frames else [clip.raw.name]
            clips.setdefault(split, []).extend(names)
            shards.setdefault(split, []).append(clip.records)
        Report(self.min_frames, clips, left_out, self.fingerprint_source(folder)).write(Path(self.data_path))
        # tensorflow-datasets shows no progress of its own here. The delay hides a bar until its split begins.
        return {
            split: tqdm(of_split, f"{self.name}, {split}", unit="shard", delay=1e-3)
            for split, of_split in shards.items()
        }

    def _find(self, folder: Path) -> list[tuple[str, Raw]]:
        """All clips in `folder`, each with its split."""
        return [(split, raw) for split, raws in self.layout.find(folder).items() for raw in raws]

    def fingerprint_source(self, folder: Path) -> str:
        """Changes with the names and sizes of the files that were downloaded."""
        sizes = [
            [split, raw.name, *([name, path.stat().st_size] for name, path in sorted(files.items()))]
            for split, raw in self._find(folder)
            for files in (raw.images, raw.renders)
        ]
        return hash_of(sizes)

    def _stage_clips(self, folder: Path) -> list[tuple[str, Staged]]:
        """Check all clips in `folder`, several at once, and pair them with their splits."""
        raws = self._find(folder)
        if not raws:
            raise InputError(f"expected {self.layout.files} in {folder}, found none of that")
        archives = [self.staging / split / f"{raw.name}.zip" for split, raw in raws]
        drawn = self.draw(folder) if self.poses else [(raw, None) for _, raw in raws]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            checked = pool.map(stage, [raw for raw, _ in drawn], archives)
            clips = list(tqdm(checked, f"{self.name}, checking", len(raws), unit="clip"))
        for i, (_, reason) in enumerate(drawn):
            if reason:  # says more than that there are no renders
                clips[i] = dataclasses.replace(clips[i], kept=[], left_out=[(None, reason)])
        return [(split, clip) for (split, _), clip in zip(raws, clips, strict=True)]

    def draw(self, folder: Path) -> list[tuple[Raw, str | None]]:
        """Draw the renders of clips that have none, see `drawing.draw_missing`."""
        places = [(self.staging / "renders" / split / raw.name, raw) for split, raw in self._find(folder)]
        return draw_missing(places, finder_options(self.poses or ""), self.share)


def builder_class(layout: Layout) -> type[Records]:
    """The builder of the data set that is downloaded in this layout."""
    attributes = {
        "__module__": __name__,
        "name": layout.name,
        "layout": layout,
        "min_frames": 1 if layout.single_frames else MIN_FRAMES,
        "MANUAL_DOWNLOAD_INSTRUCTIONS": layout.files,
    }
    return type(layout.name.title().replace("_", ""), (Records,), attributes)


BUILDERS = {name: builder_class(layout) for name, layout in LAYOUTS.items()}


def find_builder(name: str, data_dir: Path) -> Records:
    """The builder of a data set whose records are under `data_dir`, or will be.

    Raises:
      InputError: There is no data set of this name.
    """
    if name not in BUILDERS:
        raise InputError(f"data set {name!r} is unknown, expected one of {', '.join(BUILDERS)}")
    return BUILDERS[name](data_dir=data_dir, file_format="array_record")


# -- Preparing


def prepare(
    name: str,
    manual_dir: Path,
    data_dir: Path,
    min_frames: int = MIN_FRAMES,
    poses: str | None = None,
    share: Share = WHOLE,
) -> Records:
    """Make the records of a data set, unless they are there.

    tensorflow-datasets alone can read them: the features are `image`, `motion` (the render), `clip` (its name) and
    `frame` (its number in the raw clip, from 0).

    Args:
      name: A key of `LAYOUTS`.
      manual_dir: The folder with what was downloaded.
      data_dir: Where the records go, in a folder of this name.
      min_frames: Clips with fewer good frames in a row are left out. It does not apply to sets of images.
      poses: How renders are drawn where a clip has none: "landmarks", or a file of DensePose weights. None draws none.
      share: Of several processes that draw, which one this is. The first one writes the records.

    Returns:
      The builder of the records. In processes but the first, there may be no records yet.

    Raises:
      InputError: The name is unknown, nothing usable was downloaded, or `data_dir` cannot be written.
    """
    builder = find_builder(name, data_dir)
    if builder.is_prepared():
        _check_source(builder, manual_dir)
        log.info("%s is there already: %s. Delete that folder to prepare it anew.", name, builder.data_dir)
        return builder
    if not manual_dir.is_dir() or not any(manual_dir.iterdir()):
        state = "an empty folder" if manual_dir.is_dir() else "no folder"
        raise InputError(f"expected {builder.layout.files} in {manual_dir}, found {state}")
    if not builder.layout.single_frames:
        builder.min_frames = max(1, min_frames)
    builder.poses, builder.share = poses, share
    if share.index:
        builder.draw(manual_dir)
        log.info("This process has drawn its share. The first one writes the records.")
        return builder
    try:
        with advice_at_interrupt(GOES_ON):
            _write_records(builder, manual_dir)
    except OSError as error:
        raise InputError(f"cannot prepare {name} in {data_dir}: {error}") from error
    report = Report.read(Path(builder.data_path))
    for split in sorted({row.split for row in report.left_out} - report.clips.keys()):
        log.warning("No clip is left to %s with.", split)
    counts = " and ".join(f"{len(clips)} {split}" for split, clips in report.clips.items())
    log.info("Prepared %s: %s clips.", name, counts)
    if report.left_out:
        log.warning("Left out, in full in %s: %s.", builder.data_path / REPORT_FILE, summary(report.left_out))
    return builder


def _check_source(builder: Records, manual_dir: Path) -> None:
    """Raise an InputError where the records were made of another download, if that is still there."""
    made_of = Report.read(Path(builder.data_path)).source
    is_there = manual_dir.is_dir() and any(manual_dir.iterdir())
    if made_of and is_there and builder.fingerprint_source(manual_dir) != made_of:
        found = f"{builder.data_dir} was made of other files than those in {manual_dir}"
        raise InputError(f"{found}; delete that folder to prepare it anew, or give another --data_dir")


def _write_records(builder: Records, manual_dir: Path) -> None:
    for partial in builder.data_path.parent.glob("incomplete.*"):  # of a preparation that was killed
        partial.rmtree()
    config = tfds.download.DownloadConfig(manual_dir=manual_dir)
    with contextlib.redirect_stdout(io.StringIO()):  # tensorflow-datasets prints that it downloads, which it does not
        builder.download_and_prepare(download_dir=builder.staging / "downloads", download_config=config)
    shutil.rmtree(builder.staging)


# -- Reading


@dataclasses.dataclass(frozen=True)
class RecordClip:
    """A clip of a prepared data set: `frames` records of the file `shard`, from number `first` on."""

    name: str
    frames: int
    shard: str
    first: int = 0
    fps: Fraction = media.DEFAULT_FPS

    @property
    def fingerprint(self) -> str:
        return hash_of([self.name, self.frames, self.first, _shard_fingerprint(self.shard)])

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Frames and renders, both uint8 `f H W 3`."""
        video, motion = self._read(indices, ("image", "motion"))
        return video, motion

    def read_motion(self, indices: np.ndarray) -> np.ndarray:
        """The renders alone."""
        (motion,) = self._read(indices, ("motion",))
        return motion

    def _read(self, indices: np.ndarray, kinds: Sequence[str]) -> list[np.ndarray]:
        numbers = range(self.first, self.first + self.frames)
        wanted = [numbers[i] for i in indices]
        # Pictures are decoded by mafx.media, which reads more kinds of them.
        undecoded = {"image": tfds.decode.SkipDecoding(), "motion": tfds.decode.SkipDecoding()}
        with refusals(f"{self.shard} holds records that cannot be read; prepare the data anew"):
            serialized = open_shard(self.shard).__getitems__(wanted)
            records = [FEATURES.deserialize_example_np(record, decoders=undecoded) for record in serialized]
            pictures = [np.stack([self._picture(record[kind]) for record in records]) for kind in kinds]
            if len(sizes := {x.shape for x in pictures}) > 1:
                raise ValueError(f"expected frames and renders of one size, found {media.list_sizes(sizes)}")
            return pictures

    def _picture(self, content: bytes) -> np.ndarray:
        file = io.BytesIO(content)
        file.name = f"a picture in {self.shard}"  # what errors call it
        return media.read_image(file)


@functools.cache
def _shard_fingerprint(path: str) -> str:
    """Changes with the size of a file of records, and with the report beside it."""
    return hash_of([Path(path).stat().st_size, Path(path).with_name(REPORT_FILE).read_text("utf-8")])


@functools.lru_cache(maxsize=OPEN_SHARDS)
def open_shard(path: str) -> ArrayRecordDataSource:
    """The records of a file, which stays open while it is among the latest."""
    check_regular(Path(path))
    return ArrayRecordDataSource(path)


def record_clips(name: str, data_dir: Path, split: str) -> list[RecordClip]:
    """The clips of a prepared data set.

    Args:
      name: A key of `LAYOUTS`.
      data_dir: As `prepare` was given it.
      split: "train" or "test".

    Returns:
      The clips; of a set of images, one clip for each image.

    Raises:
      InputError: The data set is unknown or not prepared, or has no such split.
    """
    builder = _open_builder(name, data_dir)
    if not builder.is_prepared():
        command = f"{NAME} {name} --manual_dir DOWNLOADED --data_dir {data_dir}"
        raise InputError(f"expected {name} prepared in {data_dir}, found nothing; run {command}")
    clips = Report.read(Path(builder.data_path)).clips
    if split not in clips:
        raise InputError(
            f"expected clips to {split} with in {builder.data_dir}, found only some to {' and '.join(clips)} with"
        )
    folder = Path(builder.data_dir)
    with refusals(f"{folder} does not hold what its report.json says; prepare the data anew"):
        names, info = iter(clips[split]), builder.info.splits[split]
        records: list[RecordClip] = []
        for path, length in zip(info.filepaths, info.shard_lengths, strict=True):
            check_inside(Path(path), folder)
            frames = 1 if builder.layout.single_frames else length
            records += [RecordClip(next(names), frames, str(path), first) for first in range(0, length, frames)]
        if len(records) != len(clips[split]):
            raise ValueError(f"expected records of {len(clips[split])} clips, found those of {len(records)}")
        return records


def _open_builder(name: str, data_dir: Path) -> Records:
    """The builder, which has read the files of tensorflow-datasets in `data_dir`."""
    with refusals(f"the records of {name} in {data_dir} cannot be read; prepare the data anew"):
        check_tree(data_dir / name)
        for path in (data_dir / name).rglob("*.json"):
            read_json(path, Any)
        return find_builder(name, data_dir)


def main(arguments: list[str] | None = None) -> int:
    """Run the command, and return its exit status."""
    parser = Parser(NAME, __doc__)
    parser.add_argument("name", help=", ".join(BUILDERS))
    parser.add_argument("--manual_dir", type=Path, required=True, help="Folder with what was downloaded.")
    parser.add_argument("--data_dir", type=Path, required=True, help="Folder for the records.")
    parser.add_argument(
        "--min_frames", type=int, default=MIN_FRAMES, help="Shorter clips are left out (default %(default)s)."
    )
    parser.add_argument(
        "--poses",
        metavar="HOW",
        help="Draw renders for clips that have none: landmarks (approximate, nothing to give), or a file of DensePose "
        "weights.",
    )
    add_process_flags(parser)
    add_limit_flags(parser)
    args = parser.parse_args(arguments)
    set_limits(args)
    return run_command(NAME, _prepare_quietly, args)


def _prepare_quietly(args: argparse.Namespace) -> None:
    logging.getLogger("absl").setLevel(logging.ERROR)  # tensorflow-datasets warns that there are no records yet
    share = WHOLE
    if args.distributed:
        import jax  # noqa: PLC0415 (slow to import, and records are read without it)

        join_processes(args)
        share = Share(jax.process_index(), jax.process_count())
    prepare(args.name, args.manual_dir, args.data_dir, args.min_frames, args.poses, share)


if __name__ == "__main__":
    sys.exit(main())
