"""Uploads are what they are by their contents, and are refused before work starts."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image
from web_files import png_header, write_files

from mafx import densepose, media
from mafx.errors import InputError
from mafx.web import uploads
from mafx.web.uploads import check_driving, check_picture


@pytest.fixture
def folder(tmp_path):
    return write_files(tmp_path)


def test_a_picture_has_a_size_whatever_its_name(folder):
    shutil.copy(folder / "person.png", folder / "person.mp4")
    assert check_picture(folder / "person.png") == check_picture(folder / "person.mp4") == (48, 32)


def test_a_driving_video_is_judged_by_its_colours(folder):
    driving = check_driving(folder / "motion.mp4")
    assert (driving.kind, driving.size, driving.frames, driving.fps) == ("motion", (48, 32), 9, 15)
    assert driving.path == folder / "motion.mp4" and "DensePose video" in driving.verdict
    assert check_driving(folder / "noise.mp4").kind == "people"


def test_labels_in_other_colours_are_known(folder):
    motion, fps = media.read_video(folder / "motion.mp4")
    greys = np.repeat(densepose.read_labels(motion)[0][..., None], 3, axis=-1).astype(np.uint8)
    media.write_video(folder / "iuv.mkv", greys, fps)
    kinds = check_driving(folder / "iuv.mkv")
    assert kinds.kind == "labels" and "redrawn" in kinds.verdict


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".mkv", ".png"])
def test_a_video_under_a_wrong_name_is_read_as_what_it_is(folder, suffix):
    motion, fps = media.read_video(folder / "motion.mp4")
    frames = motion[:1] if suffix == ".png" else motion
    media.write_video(folder / f"right{suffix}", frames, fps)
    wrong = folder / ("wrong.gif" if suffix == ".mkv" else "wrong.mp4")
    shutil.copy(folder / f"right{suffix}", wrong)
    driving = check_driving(wrong)
    read, _ = media.read_video(driving.path)
    np.testing.assert_array_equal(read, media.read_video(folder / f"right{suffix}")[0])


def test_a_huge_picture_is_refused_by_its_header_alone(folder, monkeypatch):
    (folder / "huge.png").write_bytes(png_header(60_000, 60_000))
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    for check in (check_picture, check_driving):
        with pytest.raises(InputError, match="3600000000 pixels"):
            check(folder / "huge.png")
    (folder / "long.png").write_bytes(png_header(1, 60_000))
    with pytest.raises(InputError, match="60000 pixels in a row or column"):
        check_picture(folder / "long.png")


def test_what_is_no_picture_or_no_video_is_refused(folder):
    (folder / "text.png").write_text("not a picture")
    (folder / "empty.png").touch()
    (folder / "playlist.mp4").write_text("#EXTM3U\nfile:///etc/passwd\n")
    (folder / "page.svg").write_text("<svg onload='alert(1)'/>")
    for name in ("text.png", "empty.png", "playlist.mp4", "page.svg", "motion.mp4"):
        with pytest.raises(InputError, match="picture"):
            check_picture(folder / name)
    for name in ("text.png", "empty.png", "playlist.mp4", "page.svg"):
        with pytest.raises(InputError, match="video"):
            check_driving(folder / name)


def test_too_many_bytes_and_seconds_are_refused(folder, monkeypatch):
    monkeypatch.setenv(uploads.SECONDS.variable, "1")
    media.write_video(folder / "long.mp4", np.zeros((30, 16, 16, 3), np.uint8), 10)
    with pytest.raises(InputError, match="has 3 seconds, and at most 1"):
        check_driving(folder / "long.mp4")
    monkeypatch.setenv(uploads.BYTES.variable, "10")
    for check, name in ((check_picture, "person.png"), (check_driving, "motion.mp4")):
        with pytest.raises(InputError, match="at most 10 are read"):
            check(folder / name)


def test_a_pipe_or_a_folder_does_not_block(folder):
    os.mkfifo(folder / "pipe.png")
    for path in (folder / "pipe.png", folder, folder / "absent.png"):
        with pytest.raises(InputError):
            check_picture(path)
        with pytest.raises(InputError):
            check_driving(path)
