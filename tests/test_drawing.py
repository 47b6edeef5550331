import itertools
import threading

import numpy as np
import pytest
from micro import example
from PIL import Image

from mafx import media
from mafx.data import drawing
from mafx.data.builders import Report, prepare, record_clips
from mafx.data.drawing import Share, draw_missing, finder_options
from mafx.data.raw import find_raw
from mafx.densepose import read_labels
from mafx.densepose.people import Person


class Finder:
    """Finds a torso where a frame is bright, as high as it is bright."""

    warm_up = 0

    def find(self, frames):
        for frame in frames:
            labels = np.zeros(frame.shape[:2], np.uint8)
            labels[: frame.max() // 4, 4:20] = 2
            yield [Person((0, 0, *frame.shape[1::-1]), labels, 0.9)] if labels.any() else []


@pytest.fixture(autouse=True)
def finder(monkeypatch):
    made = []

    def make_finder(options, fps, is_video=True):
        made.append((options.weights, is_video))
        return Finder(), {"finder": "a test"}

    monkeypatch.setattr(drawing, "make_finder", make_finder)
    return made


def bright(frames, dark=()):
    video = np.full((frames, 64, 64, 3), 200, np.uint8)
    video[list(dark)] = 0
    return video


def write_sources(folder):
    """A video, a folder of pictures, and a clip that has renders."""
    folder.mkdir()
    media.write_video(folder / "video.mp4", bright(20, dark=[12, *range(14, 20)]), 25)
    for half in ("images", "densepose"):
        (folder / "whole").mkdir(exist_ok=True)
        media.write_video(folder / "whole" / half, example((64, 64), 20).motion, 25)
    (folder / "pictures").mkdir()
    media.write_video(folder / "pictures" / "images", bright(18), 25)
    return folder


def test_clips_without_renders_are_drawn_and_the_others_stay(tmp_path, finder):
    raws = find_raw(write_sources(tmp_path / "raw"))
    places = [(tmp_path / "drawn" / raw.name, raw) for raw in raws]
    drawn = {raw.name: raw for raw, reason in draw_missing(places, finder_options("landmarks")) if reason is None}
    assert finder == [(None, True)] * 2
    assert drawn["whole"] == next(raw for raw in raws if raw.name == "whole")
    video, _ = media.read_video(drawn["video"].renders[""])
    labels = read_labels(video)[0]
    assert len(labels) == 20 and labels[12].any() and not labels[19].any(), "short holes are filled, long ones stay"
    assert list(drawn["pictures"].renders) == list(drawn["pictures"].images)
    before = (tmp_path / "drawn" / "video.mkv").stat().st_mtime_ns
    draw_missing(places, finder_options("landmarks"))
    assert len(finder) == 2 and (tmp_path / "drawn" / "video.mkv").stat().st_mtime_ns == before, "drawn once"


def test_records_are_made_of_plain_videos(tmp_path):
    prepare("clips", write_sources(tmp_path / "raw"), tmp_path / "data", min_frames=10, poses="landmarks")
    report = Report.read(tmp_path / "data" / "clips" / "1.0.0")
    assert sorted(itertools.chain(*report.clips.values())) == ["pictures", "video", "whole"]
    nobody = {row.frame for row in report.left_out if row.clip == "video" and "nobody was found" in row.reason}
    assert nobody == {str(i) for i in range(14, 20)}
    clips = {clip.name: clip for split in report.clips for clip in record_clips("clips", tmp_path / "data", split)}
    video, motion = clips["video"].read(np.arange(14))
    assert (video[0] > 190).all() and read_labels(motion)[0].any()
    assert not (tmp_path / "data" / "clips.staging").exists()


def test_photographs_are_drawn_one_by_one(tmp_path, finder):
    (tmp_path / "raw" / "images").mkdir(parents=True)
    for name, picture in (("a", bright(1)[0]), ("b", bright(1)[0, :32]), ("empty", 0 * bright(1)[0])):
        Image.fromarray(picture).save(tmp_path / "raw" / "images" / f"{name}.png")
    (tmp_path / "raw" / "images" / "broken.png").write_bytes(b"no picture")
    prepare("images", tmp_path / "raw", tmp_path / "data", poses="weights.pkl")
    report = Report.read(tmp_path / "data" / "images" / "1.0.0")
    assert report.clips == {"train": ["a", "b"]} and set(finder) == {("weights.pkl", False)}
    assert {row.frame: "nobody" in row.reason for row in report.left_out} == {"empty": True, "broken": False}


def test_a_clip_that_cannot_be_drawn_is_reported_with_the_reason(tmp_path):
    raw = write_sources(tmp_path / "raw")
    (raw / "bad.mp4").write_bytes(b"no video")
    prepare("clips", raw, tmp_path / "data", min_frames=10, poses="landmarks")
    report = Report.read(tmp_path / "data" / "clips" / "1.0.0")
    reasons = [row.reason for row in report.left_out if row.clip == "bad"]
    assert any("bad.mp4 is not a video that can be read" in reason for reason in reasons)


def test_processes_share_the_clips(tmp_path, monkeypatch):
    monkeypatch.setattr(drawing, "POLL_SECONDS", 0.05)
    raw = write_sources(tmp_path / "raw")
    first = threading.Thread(
        target=prepare, args=("clips", raw, tmp_path / "data", 10, "landmarks", Share(0, 2)), daemon=True
    )
    first.start()
    first.join(3)
    assert first.is_alive(), "it waits for the other's clip"
    assert prepare("clips", raw, tmp_path / "data", 10, "landmarks", Share(1, 2)).poses == "landmarks"
    first.join(60)
    assert not first.is_alive()
    report = Report.read(tmp_path / "data" / "clips" / "1.0.0")
    assert sorted(itertools.chain(*report.clips.values())) == ["pictures", "video", "whole"]
