import numpy as np
import pytest

from mafx.data.clips import PuppetClip
from mafx.densepose import draw_labels
from mafx.densepose.pose_networks import PoseNetworks
from mafx.experiments import mirror
from mafx.experiments.mirror import (
    FRAMES,
    Imitated,
    draw,
    imitate,
    imitation_row,
    imitation_table,
    mean_scores,
    newest_frames,
    settings,
    window_table,
)
from mafx.metrics import psnr

SIZE = 32, 32


class ShowsMotion:
    """A program whose video is the motion that it is given."""

    def __init__(self, frames):
        self.frames, self.size = frames, SIZE

    def see(self, reference):
        return reference

    def move(self, appearance, motion):
        assert len(motion) == self.frames
        return motion / np.float32(255)


@pytest.mark.parametrize("window", [1, 4])
def test_the_newest_frame_of_each_window_is_shown(window):
    motion = np.random.default_rng(0).integers(0, 256, (FRAMES + 15, *SIZE, 3), np.uint8)
    shown = newest_frames(ShowsMotion(window), {"reference": motion[0], "motion": motion})
    np.testing.assert_array_equal(shown, motion[-FRAMES:])


def test_the_truth_has_no_wrong_change():
    video, motion = PuppetClip(0, 0, SIZE).read(1 + np.arange(FRAMES))
    scores = mean_scores([video], [{"video": video, "motion": motion}])
    assert scores == {"psnr": 100.0, "psnr_person": 100.0, "wrong_change": 0.0}
    still = mean_scores([np.repeat(video[:1], FRAMES, 0)], [{"video": video, "motion": motion}])
    assert still["wrong_change"] > 1 and still["psnr"] < 40


@pytest.mark.parametrize("window", mirror.WINDOWS)
def test_settings_are_valid_for_every_window(window):
    assert settings(window).overlap < window


def test_a_person_moves_a_puppet(pose_files, monkeypatch):
    monkeypatch.setattr(mirror, "FRAMES", 3)
    puppet = PuppetClip(8, 7, SIZE)
    found = imitate(ShowsMotion(1), PoseNetworks(pose_files), PuppetClip(7, 7, mirror.CAMERA), puppet)
    truth, renders = puppet.read(1 + np.arange(3))
    for x, picture, render in zip(found, truth, renders, strict=True):
        row = imitation_row(x)
        assert row["outline"] > 0.6 and row["psnr_true_labels"] == psnr(render, picture)
        np.testing.assert_array_equal(x.shown, x.imitated)
    assert draw(found).shape == (2 * 4 * 32, 2 * 6 * 32, 3)


def test_the_front_is_told_by_the_yaw():
    seen = Imitated(0.0, *[draw_labels(np.ones(SIZE, np.uint8))] * 6)
    rows = [imitation_row(seen._replace(yaw=0.5 + np.pi * turns)) for turns in (0.0, 1.0, 2.0)]
    assert [row["front"] for row in rows] == [True, False, True] and rows[0]["outline"] == 1


def test_tables_count_what_was_not_found():
    rows = [{"front": front, "outline": 0.5, "psnr": 20.0, "psnr_true_labels": 30.0} for front in (True, True, False)]
    lines = imitation_table(rows, 5).splitlines()
    assert lines[2] == "| within 60 degrees of the front | 2 | 0.50 | 20.00 | 30.00 |" and lines[-1].endswith(
        "2 of 5 frames."
    )
    scores = {"psnr": 20.0, "psnr_person": 10.0, "wrong_change": 3.0}
    windows = [
        {"window": "1", "seconds": 0.5, **scores},
        {"window": "16", "seconds": 2.0, **scores},
        {"window": "all", **scores},
    ]
    ends = [line.rsplit("|", 2)[1].strip() for line in window_table(windows).splitlines()[2:]]
    assert ends == ["1.0", "4.0", ""]
