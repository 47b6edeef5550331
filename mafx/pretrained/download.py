"""Fetch the published weights, compare them with their checksums, and open every file.

    python -m mafx.pretrained.download WEIGHTS
    python -m mafx.pretrained.download WEIGHTS --with densepose metrics pose

Whatever was fetched before is kept: give the same command again after an interruption. HF_ENDPOINT names a mirror of
the Hugging Face hub, HF_TOKEN a token for it, HTTPS_PROXY a proxy.
"""

import argparse
import dataclasses
import logging
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from mafx.commands import DEFAULT_CACHE, Parser, expand_home, run_command
from mafx.errors import InputError, refusals
from mafx.interrupts import GOES_ON, advice_at_interrupt
from mafx.pretrained.origins import (
    ANIMATION,
    BY_HAND,
    DENSEPOSE,
    DENSEPOSE_PLACE,
    METRICS,
    OPTIONAL,
    ORIGINS,
    POSE,
    Origin,
)
from mafx.pretrained.transfers import TIMEOUT_SECONDS, Checksum, Source, ask_size, host_of, persistently, transfer
from mafx.stamps import Facts, read_stamp, write_stamp
from mafx.tables import markdown_table

log = logging.getLogger("mafx")

NAME = "python -m mafx.pretrained.download"
MIRRORS = "set HF_ENDPOINT to another mirror of the hub"
POSE_NOTE = "pip will fetch the two networks of BlazePose: Apache-2.0, 36 MB, of which 9 MB are kept."
CHECKED_FILE = "download.json"  # a stamp of the files that have their checksums


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command's flags."""
    parser = Parser(NAME, __doc__)
    parser.usage = f"{NAME} WEIGHTS [FLAGS]"
    parser.add_argument("weights", metavar="WEIGHTS", type=expand_home, help="Folder for the weights.")
    parser.add_argument(
        "--with",
        dest="groups",
        nargs="+",
        choices=OPTIONAL,
        default=[],
        metavar="GROUP",
        help=f"What else to fetch, beside what an animation needs: {', '.join(OPTIONAL)}.",
    )
    return parser.parse_args(arguments)


def download(
    folder: Path, groups: Iterable[str] = (), origins: Sequence[Origin] = ORIGINS, endpoint: str | None = None
) -> None:
    """Fetch what is not there, check it and open it. The log says what, under which licences, and how to use it.

    Args:
      folder: Where the weights go, see `mafx.pretrained.layout`.
      groups: Words of `origins.OPTIONAL`: what is fetched beside what an animation needs.
      origins: Where files come from.
      endpoint: Address of the Hugging Face hub; None takes HF_ENDPOINT, or the hub itself.

    Raises:
      InputError: A server refuses a file or does not have it, or sends another one. The disk has no room. Or a file
        that is there already is not the published one.
      OSError: A server cannot be reached, or the disk is full. What came is kept.
    """
    groups = (ANIMATION, *groups)
    origins = [origin for origin in origins if origin.group in groups]
    sources = find_sources(origins, endpoint)
    checked = CheckedFiles(folder)
    parts = {origin: _part_path(folder, origin, source) for origin, source in sources.items()}
    missing = [origin for origin, source in sources.items() if not checked.has(origin.place, source)]
    _announce(folder, sources, missing, parts)
    if POSE in groups:
        log.info(POSE_NOTE)
    with advice_at_interrupt(GOES_ON):
        _fetch_all({origin: sources[origin] for origin in missing}, parts, checked)
        if POSE in groups:
            _fetch_pose_networks()
    _open_all(folder, groups)
    log.info("All files are there and can be read. Use them:\n%s", "\n".join(_usage(folder, groups)))


# -- Where the bytes come from


def find_sources(origins: Iterable[Origin], endpoint: str | None = None) -> dict[Origin, Source]:
    """Ask the hub and the servers for addresses, sizes and checksums. Raises what `download` does."""
    from huggingface_hub import HfApi  # noqa: PLC0415 (slow to import)

    hub = HfApi(endpoint=endpoint)
    listings: dict[str, Any] = {}
    sources = {}
    for origin in origins:
        if origin.repository:
            if origin.repository not in listings:
                listings[origin.repository] = _list_repository(hub, origin.repository)
            sources[origin] = _source_on_hub(hub, origin, listings[origin.repository])
        else:
            checksum = Checksum("sha256", origin.sha256) if origin.sha256 else None
            source = Source(origin.name, size=origin.size, checksum=checksum)
            sources[origin] = source if origin.size else dataclasses.replace(source, size=ask_size(source))
    return sources


def _list_repository(hub: Any, repository: str) -> Any:
    """What the hub says about a repository and its files."""

    def attempt() -> Any:
        return hub.model_info(repository, files_metadata=True, timeout=TIMEOUT_SECONDS)

    return persistently(attempt, f"the list of files of {repository}", Source(hub.endpoint, advice=MIRRORS))


def _source_on_hub(hub: Any, origin: Origin, info: Any) -> Source:
    from huggingface_hub import hf_hub_url  # noqa: PLC0415 (slow to import)
    from huggingface_hub.utils import build_hf_headers  # noqa: PLC0415

    url = hf_hub_url(origin.repository, origin.name, revision=info.sha, endpoint=hub.endpoint)
    file = next((file for file in info.siblings or () if file.rfilename == origin.name), None)
    if file is None:
        raise InputError(f"{host_of(url)} has no {origin.name} in {origin.repository}; {MIRRORS}")
    checksum = Checksum("git", file.blob_id) if file.blob_id else None
    if file.lfs:
        checksum = Checksum("sha256", file.lfs.sha256)
    return Source(url, build_hf_headers(), file.size, checksum, MIRRORS)


def _part_path(folder: Path, origin: Origin, source: Source) -> Path:
    """Where a file lies while it comes. The name changes with what is to come, so that no two files are mixed."""
    path = folder / origin.place
    digits = source.checksum.digits[:12] if source.checksum else source.size
    return path.with_name(f".{path.name}.{digits}.part")


# -- What is there already


class CheckedFiles:
    """Remembers which files of a folder had their checksums: 14 GB take half a minute to be summed."""

    def __init__(self, folder: Path):
        """Raises InputError where the file of these facts is damaged."""
        self._folder = folder
        self._facts: Facts = read_stamp(folder / CHECKED_FILE) or {}

    def has(self, place: str, source: Source) -> bool:
        """Whether a file is there. Raises InputError where it is another one."""
        path = self._folder / place
        if not path.exists():
            return False
        if self._facts.get(place) != self._state(path, source):
            log.info("Comparing %s with what is published.", path)
            if complaint := source.complaint(path):
                raise InputError(f"{path} is not the published file ({complaint}); remove it, so that it is fetched")
            self.add(place, source)
        return True

    def add(self, place: str, source: Source) -> None:
        """Remember that a file was compared with its checksum."""
        self._facts[place] = self._state(self._folder / place, source)
        with refusals(f"cannot write into {self._folder}"):
            write_stamp(self._folder / CHECKED_FILE, self._facts)

    def _state(self, path: Path, source: Source) -> list:
        """What changes with the file, and with what it should be."""
        status = path.stat()
        return [status.st_size, status.st_mtime_ns, source.size, list(source.checksum or ())]


def _announce(
    folder: Path, sources: Mapping[Origin, Source], missing: Sequence[Origin], parts: Mapping[Origin, Path]
) -> None:
    """Log what will happen. Raises InputError where the disk has no room for it."""
    to_come = {origin: max(0, (sources[origin].size or 0) - _size(parts[origin])) for origin in missing}
    homes: dict[tuple[str, str], list[Origin]] = {}
    for origin, source in sources.items():
        homes.setdefault((origin.repository or host_of(source.url), origin.licence), []).append(origin)
    rows = []
    for (home, licence), own in homes.items():
        size = sum(sources[origin].size or 0 for origin in own)
        coming = sum(to_come.get(origin, 0) for origin in own)
        rows.append((home, licence, len(own), _megabytes(size), _megabytes(coming)))
    log.info("%s", markdown_table(("from", "licence", "files", "size", "to come"), rows, words=2))
    needed = sum(to_come.values())
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    log.info("%s are to come; the disk of %s has %s free.", _megabytes(needed), there, _megabytes(free))
    if needed > free:
        raise InputError(
            f"expected room for {_megabytes(needed)} in {folder}, found {_megabytes(free)}; make room, or name another "
            "disk"
        )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


# -- Fetching


def _fetch_all(sources: Mapping[Origin, Source], parts: Mapping[Origin, Path], checked: CheckedFiles) -> None:
    """Fetch files one after another, with one bar for all bytes."""
    before = sum(_size(parts[origin]) for origin in sources)
    total = sum(source.size or 0 for source in sources.values())
    with tqdm(total=total, initial=before, unit="B", unit_scale=True, disable=not sources) as bar:
        for origin, source in sources.items():
            bar.set_description(origin.place.rpartition("/")[2])
            _fetch(origin, source, parts[origin], bar)
            checked.add(origin.place, source)


def _fetch(origin: Origin, source: Source, part: Path, bar: tqdm) -> None:
    """Fetch a file; it gets its name when it is whole and has its checksum."""
    with refusals(f"cannot write {part.parent}"):
        part.parent.mkdir(parents=True, exist_ok=True)
    transfer(source, part, origin.place, bar.update)
    if complaint := source.complaint(part):
        part.unlink()
        raise InputError(
            f"{host_of(source.url)} sent another {origin.place} than is published ({complaint}); it was removed: give "
            f"the same command again, or {source.advice}"
        )
    path = part.with_name(origin.place.rpartition("/")[2])
    os.replace(part, path)
    for old in path.parent.glob(f".{path.name}.*.part"):  # of what was published before
        old.unlink()


def _fetch_pose_networks() -> None:
    """The networks that find poses, which come through pip and go where `python -m mafx.densepose` looks for them."""

    from mafx.densepose.pose_files import fetch_pose_files  # noqa: PLC0415 (not needed by others)

    fetch_pose_files(DEFAULT_CACHE)


# -- Opening


def _open_all(folder: Path, groups: Iterable[str]) -> None:
    """Open every file by mafx's own readers. Raises InputError where one does not hold what it should."""
    from mafx.densepose.rcnn_weights import load_rcnn  # noqa: PLC0415 (slow to import, as JAX is)
    from mafx.evaluation.features import NETWORKS, read_network  # noqa: PLC0415
    from mafx.pretrained.layout import check_pretrained  # noqa: PLC0415

    check_pretrained(folder)
    if DENSEPOSE in groups:
        load_rcnn(folder / DENSEPOSE_PLACE)
    if METRICS in groups:
        for name, spec in NETWORKS.items():
            paths = [folder / METRICS / file for file in spec.files]
            if all(path.exists() for path in paths):
                read_network(name, paths)


def _usage(folder: Path, groups: Iterable[str]) -> list[str]:
    """How to use the files, line by line."""
    lines = [f"python sample.py --pretrained {folder} --reference person.png --motion densepose.mp4 --out out.mp4"]
    if DENSEPOSE in groups:
        lines.append(f"python -m mafx.densepose dance.mp4 --weights {folder / DENSEPOSE_PLACE} --out motion.mp4")
    if METRICS in groups:
        lines.append(f"python sample.py --workdir RUN --split test --metric_networks {folder / METRICS}")
        for place, page in BY_HAND.items():
            if not (folder / place).exists():
                lines.append(
                    f"Put {place.rpartition('/')[2]} from {page} into {folder / METRICS}: only a browser gets it."
                )
    return lines


def main(args: argparse.Namespace) -> None:
    """What the command does."""
    download(args.weights, args.groups)


if __name__ == "__main__":
    sys.exit(run_command(NAME, main, parse(sys.argv[1:])))
