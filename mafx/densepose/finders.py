"""Which finder of people is taken: DensePose with published weights, or the landmarks of bodies without any."""

import dataclasses
import functools
import hashlib
from fractions import Fraction
from pathlib import Path

from mafx.commands import DEFAULT_CACHE, expand_home
from mafx.densepose.bodies import BodyFinder
from mafx.densepose.kept import Finder
from mafx.densepose.pose_files import PoseFiles, fetch_pose_files, kept_networks, read_pose_files
from mafx.errors import InputError
from mafx.files import check_regular
from mafx.stamps import Facts

LANDMARK_FILES = frozenset({".task", ".tflite", ""})  # suffixes; none is a folder
PEOPLE = 4  # whose landmarks are found at most


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinderOptions:
    """How people are found.

    Attributes:
      weights: A published DensePose file, or the landmark networks: a `.task` or a folder of `.tflite`. None fetches
        the landmark networks, once.
      dtype: What DensePose computes in.
      min_size: Shorter side of the frames that DensePose sees, in pixels,
      max_size: unless the longer one became longer than this. None means as published.
      cache: Folder in which fetched networks are kept.
    """

    weights: str | Path | None = None
    dtype: str = "float32"
    min_size: int | None = None
    max_size: int | None = None
    cache: str = DEFAULT_CACHE


def make_finder(options: FinderOptions, fps: Fraction, is_video: bool = True) -> tuple[Finder, Facts]:
    """What finds people in frames, and the facts that its results depend on.

    Args:
      options: How.
      fps: Frames per second of the video.
      is_video: Whether the frames follow each other; else each is a picture of its own.

    Raises:
      InputError: The weights cannot be read, or the landmark networks cannot be fetched.
    """
    if options.weights is None or Path(options.weights).suffix.lower() in LANDMARK_FILES:
        return _make_body_finder(options, fps, is_video)
    return _make_densepose_finder(options)


def landmark_networks(options: FinderOptions | None) -> PoseFiles:
    """The landmark networks, also where DensePose finds people otherwise. Nothing is fetched.

    Args:
      options: How people are found; None where they cannot be.

    Raises:
      InputError: They are not there.
    """
    options = options or FinderOptions()
    has_them = options.weights is not None and Path(options.weights).suffix.lower() in LANDMARK_FILES
    folder = options.weights if has_them else kept_networks(options.cache)
    if folder is None:
        raise InputError("expected landmark networks, found none; start again with --fetch_networks")
    return read_pose_files(folder)


@functools.lru_cache(maxsize=2)  # the networks are prepared once for all pictures of a set
def _make_body_finder(options: FinderOptions, fps: Fraction, is_video: bool) -> tuple[Finder, Facts]:
    given = options.weights
    files = fetch_pose_files(options.cache or DEFAULT_CACHE) if given is None else read_pose_files(given)
    digest = hashlib.sha256(files.detection + files.landmarks).hexdigest()
    facts = {"finder": "their landmarks (approximate)", "weights": digest, "fps": str(fps)}
    return BodyFinder(files, people=PEOPLE, tracking=is_video, fps=float(fps)), facts


@functools.lru_cache(maxsize=1)  # weights are read, and programs compiled, once, whatever the rates of videos
def _make_densepose_finder(options: FinderOptions) -> tuple[Finder, Facts]:
    from mafx.densepose.rcnn_run import RCNNFinder  # noqa: PLC0415 (needs JAX, which those who read data do without)

    path = expand_home(options.weights or "")
    check_regular(path, "file of DensePose weights")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    sides = {name: side for name in ("min_size", "max_size") if (side := getattr(options, name)) is not None}
    facts = {"finder": "DensePose", "weights": digest, "dtype": options.dtype, "sides": str(sides)}
    return RCNNFinder(path, dtype=options.dtype, **sides), facts
