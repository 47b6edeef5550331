"""The command as users call it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from micro import example
from PIL import Image

from mafx import media
from mafx.data.clips import puppet_clips
from mafx.pretrained.layout import save_pretrained

SAMPLE = Path(__file__).parent.parent / "sample.py"


def sample(folder, *arguments):
    command = [sys.executable, SAMPLE, f"--cache={folder.parent / 'programs'}", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)


@pytest.fixture(scope="module")
def inputs(micro, tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    save_pretrained(micro, folder / "weights")
    clip = example((48, 32), 9)
    Image.fromarray(clip.reference).save(folder / "person.png")
    media.write_video(folder / "motion.mp4", clip.motion, 15)
    return folder


def test_animates_at_a_portrait_size(inputs, tmp_path):
    done = sample(tmp_path, "--pretrained", inputs / "weights", "--reference", inputs / "person.png", "--motion", inputs / "motion.mp4",
                  "--size", "32x16", "--steps", 1, "--window", 4, "--overlap", 1, "--stride", 3, "--grid", "--zoom", 1,
                  "--out", "out.mp4")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "The reference is 48x32: crop to 32x16" in done.stderr
    assert "3 frames of 32x16" in done.stderr
    video, fps = media.read_video(tmp_path / "out.mp4")
    assert video.shape == (3, 32, 3 * 16, 3)
    assert fps == 5  # every third frame of 15 per second
    reference = media.fit(media.read_image(inputs / "person.png"), (32, 16))
    assert np.abs(video[:, :, :16].astype(int) - reference).mean() < 8
    record = json.loads((tmp_path / "out.json").read_text())
    assert (
        record["settings"]["steps"] == 1
        and record["size"] == [32, 16]
        and record["motion"] == {"frames": 3, "stride": 3, "fps": 5.0}
    )


def test_without_arguments_a_puppet_is_animated(tmp_path):
    done = sample(tmp_path, "--frames", 3, "--grid")
    assert done.returncode == 0, done.stderr
    assert "the model in the box" in done.stderr and "animation.mp4 and animation.gif: 3 frames of 32x32" in done.stderr
    for name in ("animation.mp4", "animation.gif"):
        video, fps = media.read_video(tmp_path / name)
        assert video.shape == (3, 256, 3 * 256, 3) and abs(fps - 12) <= 0.5  # a gif counts in hundredths of a second
    held_out, _ = puppet_clips("test", 1, (32, 32))[0].read(np.arange(1))
    shown = media.read_video(tmp_path / "animation.mp4")[0][0, 4::8, 4:256:8]
    assert np.abs(shown.astype(int) - held_out[0]).mean() < 4


def test_bad_input_is_one_sentence_and_exit_code_2(inputs, tmp_path):
    weights = ("--pretrained", inputs / "weights", "--steps", 1, "--out", "new.mp4")
    (tmp_path / "there.mp4").write_bytes(b"precious")
    (tmp_path / "empty.mp4").write_bytes(b"")
    Image.new("RGB", (32, 32)).save(tmp_path / "photo.png")
    for arguments, message in (
        (("--reference", "absent.png", *weights), "there is no picture at absent.png"),
        (("--motion", "empty.mp4", *weights), "not a video that can be read"),
        (("--motion", tmp_path / "photo.png", "--motion_check", "error", *weights), "DensePose"),
        (("--size", "60", *weights), "divisible by 8"),
        (("--pretrained", tmp_path, "--out", "new.mp4"), "is not the layout of published weights"),
        (("--out", "there.mp4"), "exists; choose another --out or give --overwrite"),
        (("--out", "no/new.mp4"), "there is no folder no"),
        (("--out", "new.avi"), "expected the extension"),
        (("--frames", "0"), "flag --frames"),
        (("--stepz", "3"), "stepz"),
        (("--split", "test"), "give its --workdir"),
        (("stray",), "belongs to no flag"),
    ):
        done = sample(tmp_path, *arguments)
        assert done.returncode == 2, (arguments, done.stderr)
        assert message in done.stderr and "Traceback" not in done.stderr, (arguments, done.stderr)
    assert (tmp_path / "there.mp4").read_bytes() == b"precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty.mp4", "photo.png", "there.mp4"]
