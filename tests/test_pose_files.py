import hashlib
import os
import subprocess
import threading
import zipfile
from pathlib import Path

import pytest

from mafx.densepose import pose_files
from mafx.densepose.pose_files import MEMBERS, Member, PoseFiles, fetch_pose_files, read_pose_files
from mafx.errors import InputError

FILES = PoseFiles(b"\x1c\0\0\0TFL3 detection", b"\x1c\0\0\0TFL3 landmarks")


def digest(content):
    return hashlib.sha256(content).hexdigest()


def write_wheel(path, files=FILES):
    with zipfile.ZipFile(path, "w") as wheel:
        for member, content in zip(MEMBERS, files, strict=True):
            wheel.writestr(zipfile.ZipInfo(member.path), content)


@pytest.fixture
def pip(monkeypatch, tmp_path):
    """pip as it would be if the index had a wheel with the files above; the commands that were run."""
    commands = []
    write_wheel(tmp_path / "good.whl")
    served = tmp_path / "good.whl"

    def run(command, **_):
        commands.append(command)
        (Path(command[-1]) / "mediapipe.whl").write_bytes(served.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(pose_files, "WHEEL_SHA256", digest(served.read_bytes()))
    members = tuple(Member(m.path, digest(content)) for m, content in zip(MEMBERS, FILES, strict=True))
    monkeypatch.setattr(pose_files, "MEMBERS", members)
    commands.append(served)
    return commands


def test_the_wheel_is_fetched_once(pip, tmp_path):
    assert fetch_pose_files(tmp_path / "cache") == FILES
    assert fetch_pose_files(tmp_path / "cache") == FILES
    _, command = pip
    assert command[1:5] == ["-m", "pip", "download", "mediapipe==0.10.21"]
    kept = sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert kept == ["pose_detection.tflite", "pose_landmark_full.tflite"]


def test_what_is_damaged_is_fetched_anew(pip, tmp_path):
    fetch_pose_files(tmp_path)
    path = tmp_path / "pose" / "pose_detection.tflite"
    path.write_bytes(path.read_bytes()[:-1])
    assert fetch_pose_files(tmp_path) == FILES
    assert path.read_bytes() == FILES.detection and len(pip) == 3


def test_without_a_cache_nothing_is_kept(pip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    assert fetch_pose_files("") == FILES
    assert set(tmp_path.rglob("*")) == before


def test_another_wheel_is_refused_and_nothing_of_it_is_kept(pip, tmp_path):
    write_wheel(pip[0], FILES._replace(landmarks=b"\x1c\0\0\0TFL3 others"))
    with pytest.raises(InputError, match="expected the SHA-256 .* found another"):
        fetch_pose_files(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_members_are_checked_one_by_one(pip, tmp_path, monkeypatch):
    write_wheel(pip[0], FILES._replace(landmarks=b"\x1c\0\0\0TFL3 others"))
    monkeypatch.setattr(pose_files, "WHEEL_SHA256", digest(pip[0].read_bytes()))
    with pytest.raises(InputError, match=r"SHA-256 .* of mediapipe/modules/pose_landmark/.*, found another"):
        fetch_pose_files(tmp_path / "cache")


def test_processes_that_fetch_at_once_do_not_disturb_each_other(pip, tmp_path):
    found = []
    threads = [threading.Thread(target=lambda: found.append(fetch_pose_files(tmp_path / "cache"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [FILES] * 8
    assert len(list((tmp_path / "cache" / "pose").iterdir())) == 2


def test_a_failure_of_pip_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(InputError) as caught:
        fetch_pose_files(tmp_path / "cache")
    message = str(caught.value)
    assert "No matching distribution" in message and "`pip download mediapipe==0.10.21 --no-deps" in message


@pytest.mark.skipif(
    os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_a_cache_that_cannot_be_written_is_named(pip, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot keep the networks in"):
        fetch_pose_files(tmp_path / "cache")
    tmp_path.chmod(0o700)


def write_folder(folder, detection="pose_detection.tflite", landmarks="pose_landmark_heavy.tflite"):
    (folder / detection).write_bytes(FILES.detection)
    (folder / landmarks).write_bytes(FILES.landmarks)
    return folder


def write_bundle(path, **changed):
    with zipfile.ZipFile(path, "w") as bundle:
        bundle.writestr("pose_detector.tflite", FILES.detection)
        bundle.writestr("pose_landmarks_detector.tflite", changed.get("landmarks", FILES.landmarks))
    return path


def test_files_of_the_user_are_found(tmp_path):
    assert read_pose_files(write_folder(tmp_path)) == FILES
    assert read_pose_files(tmp_path / "pose_landmark_heavy.tflite") == FILES
    bundles = tmp_path / "bundles"
    bundles.mkdir()
    assert read_pose_files(write_bundle(bundles / "pose_landmarker_full.task")) == FILES
    assert read_pose_files(bundles) == FILES


def test_the_best_landmarks_are_taken(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "pose_landmark_lite.tflite").write_bytes(b"\x1c\0\0\0TFL3 lite")
    assert read_pose_files(tmp_path) == FILES


def test_what_is_missing_is_named(tmp_path):
    (tmp_path / "pose_detection.tflite").write_bytes(FILES.detection)
    with pytest.raises(InputError, match=r"expected .* and one of pose_landmark_heavy.* found pose_detection.tflite"):
        read_pose_files(tmp_path)
    with pytest.raises(InputError, match="there is no network at"):
        read_pose_files(tmp_path / "nothing")


@pytest.mark.parametrize("content", [b"", b"\x1c\0\0\0TFL2 old", b"PK"])
def test_other_files_are_refused(tmp_path, content):
    write_folder(tmp_path)
    (tmp_path / "pose_landmark_heavy.tflite").write_bytes(content)
    with pytest.raises(InputError, match="expected a TensorFlow Lite network"):
        read_pose_files(tmp_path)
    with pytest.raises(InputError, match="expected a TensorFlow Lite network"):
        read_pose_files(write_bundle(tmp_path / "x.task", landmarks=content))
    (tmp_path / "y.task").write_bytes(content)
    with pytest.raises(InputError, match="not a bundle of networks"):
        read_pose_files(tmp_path / "y.task")


def test_no_more_than_the_limit_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(pose_files, "MAX_BYTES", 20)
    with pytest.raises(InputError, match="at most 20 bytes"):
        read_pose_files(write_bundle(tmp_path / "x.task", landmarks=FILES.landmarks + bytes(10**6)))
