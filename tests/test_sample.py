"""sample.py as users call it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from micro import example
from PIL import Image

import sample as sample_module
from mafx import jobs, media, sources
from mafx.data.clips import puppet_clips
from mafx.errors import InputError
from mafx.pretrained.layout import save_pretrained

SAMPLE = Path(__file__).parent.parent / "sample.py"


def sample(folder, *arguments):
    command = [sys.executable, SAMPLE, f"--cache={os.environ['JAX_COMPILATION_CACHE_DIR']}", *map(str, arguments)]
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
    files = ("--reference", inputs / "person.png", "--motion", inputs / "motion.mp4", "--out", "out.MP4")
    settings = ("--size", "32x16", "--steps", 1, "--window", 4, "--overlap", 1, "--stride", 3, "--grid")
    done = sample(tmp_path, "--pretrained", inputs / "weights", *files, *settings)
    assert done.returncode == 0, done.stderr
    assert "The reference is 48x32: crop to 32x16" in done.stderr
    assert "3 frames of 32x16, 5 per second" in done.stderr
    video, fps = media.read_video(tmp_path / "out.MP4")
    assert video.shape == (3, 32, 3 * 16, 3)
    assert fps == 5  # every third frame of 15 per second
    reference = media.fit(media.read_image(inputs / "person.png"), (32, 16))
    assert np.abs(video[:, :, :16].astype(int) - reference).mean() < 8
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["settings"]["steps"] == 1 and record["size"] == [32, 16] and record["zoom"] == 1
    assert record["motion"] == {"frames": 3, "stride": 3, "fps": 5.0}


def test_without_arguments_a_puppet_is_animated_and_again(tmp_path):
    for frames in (3, 2):
        done = sample(tmp_path, "--frames", frames, "--grid")
        assert done.returncode == 0, done.stderr
        assert "the bundled model" in done.stderr
        assert f"animation.mp4 and animation.gif: {frames} frames of 64x64, enlarged 4 times" in done.stderr
        for name in ("animation.mp4", "animation.gif"):
            video, fps = media.read_video(tmp_path / name)
            # a gif counts in hundredths of a second
            assert video.shape == (frames, 256, 3 * 256, 3) and abs(fps - 12) <= 0.5
    held_out, _ = puppet_clips("test", 1, (64, 64))[0].read(np.arange(1))
    shown = media.read_video(tmp_path / "animation.mp4")[0][0, 2::4, 2:256:4]
    assert np.abs(shown.astype(int) - held_out[0]).mean() < 4
    record = json.loads((tmp_path / "animation.json").read_text())
    assert record["zoom"] == 4 and record["settings"]["steps"] == 4


def test_somebody_else_s_files_are_not_replaced(tmp_path):
    (tmp_path / "animation.mp4").write_bytes(b"precious")
    done = sample(tmp_path)
    assert done.returncode == 2 and "animation.mp4 exists" in done.stderr
    assert (tmp_path / "animation.mp4").read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pretrained", "WEIGHTS", "--reference", "absent.png"], "there is no picture at absent.png"),
        (["--pretrained", "WEIGHTS", "--motion", "empty.mp4"], "not a video that can be read"),
        (["--pretrained", "WEIGHTS", "--motion", "photo.png", "--motion_check", "error"], "DensePose"),
        (["--pretrained", "WEIGHTS", "--size", "61"], "divisible by 2, found 61x61; the nearest such size is 60x60"),
        (["--pretrained", "."], "config.json"),
        (["--pretrained", "a", "--workdir", "b"], "found both"),
        (["--size", "6x6x6"], "expected one number or HxW"),
        (["--out", "there.mp4"], "exists; choose another --out or give --overwrite"),
        (["--out", "no/new.mp4"], "there is no folder no"),
        (["--out", "new.avi"], "expected the suffix"),
        (["--out", ""], "cannot write"),
        (["--out", "."], "cannot write"),
        (["--frames", "0"], "--frames: expected a whole number of at least 1"),
        (["--guidance_interval", "700"], "expected two times"),
        (["--memory", "0"], "--memory: expected a number of GiB, found '0'"),
        (["--memory", "8GB"], "--memory: expected a number of GiB, found '8GB'"),
        (["--steps", "0"], "expected steps to be at least 1"),
        (["--split", "test"], "give its --workdir"),
        (["--stepz", "3"], "--stepz"),
        (["stray"], "stray"),
    ],
)
def test_bad_input_is_one_sentence(inputs, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.mp4").write_bytes(b"precious")
    (tmp_path / "empty.mp4").write_bytes(b"")
    Image.new("RGB", (32, 32)).save(tmp_path / "photo.png")
    arguments = [str(inputs / "weights") if word == "WEIGHTS" else word for word in arguments]
    with pytest.raises((InputError, SystemExit)) as error:
        sample_module.main([*arguments, "--cache", ""])
    said = capsys.readouterr().err + str(error.value)
    assert message in said and said.count("\n") <= 1
    assert (tmp_path / "there.mp4").read_bytes() == b"precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty.mp4", "photo.png", "there.mp4"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--overlap", "20"], "overlap"),
        (["--window", "40"], "expected a window of 1 to"),
        (["--steps", "1001"], "steps"),
        (["--sampler", "euler", "--eta", "1"], "eta 1.0 belongs to the ddim sampler"),
        (["--guidance_interval", "700,0"], "two whole times in their order"),
        (["--size", "33"], "divisible by"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_loaded(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources, "load_bundled", lambda dtype: pytest.fail("loaded"))
    with pytest.raises(InputError, match=message):
        sample_module.main([*arguments, "--cache", ""])


def test_frames_that_cannot_be_written_are_kept(tmp_path):
    video = np.arange(96, dtype=np.uint8).reshape(2, 4, 4, 3)
    refused = pytest.raises(InputError, match=r"disk full; the frames are not lost: numpy.load\(")
    with refused as error, jobs.rescue(video, [tmp_path / "gone", tmp_path]):
        raise OSError("disk full")
    (kept,) = tmp_path.iterdir()
    assert str(kept) in str(error.value)
    np.testing.assert_array_equal(np.load(kept)["video"], video)
    with pytest.raises(InputError, match="write the frames anywhere"), jobs.rescue(video, [tmp_path / "gone"]):
        raise InputError("no")


def test_a_gif_beside_a_video_has_a_record_of_its_own(tmp_path):
    for name in ("one.mp4", "one.json"):
        (tmp_path / name).touch()
    assert jobs.check_outputs([tmp_path / "one.gif"], overwrite=False) == tmp_path / "one.gif.json"
    assert jobs.check_outputs([tmp_path / "two.gif"], overwrite=False) == tmp_path / "two.json"
    assert jobs.check_outputs([tmp_path / "one.mp4"], overwrite=True) == tmp_path / "one.json"
    with pytest.raises(InputError, match="one.mp4 exists"):
        jobs.check_outputs([tmp_path / "one.mp4"], overwrite=False)


def test_bad_input_ends_with_exit_code_2(tmp_path):
    for arguments in (("--reference", "absent.png"), ("--stepz", "3")):
        done = sample(tmp_path, *arguments)
        assert done.returncode == 2 and done.stderr.startswith("sample.py: ")
        assert len(done.stderr.splitlines()) == 1, done.stderr
    assert not list(tmp_path.iterdir())
