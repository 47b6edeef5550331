import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from PIL import Image, JpegImagePlugin

from mafx import media
from mafx.data import builders, layouts, raw
from mafx.data.builders import main, prepare, record_clips
from mafx.data.datasets import DATASETS, PREPARED, find_clips
from mafx.data.layouts import LAYOUTS
from mafx.densepose import draw_labels, read_labels
from mafx.errors import InputError


def drawn(frames, h=64, w=48):
    """A picture of noise and the labels of a rectangle for each frame."""
    labels = np.zeros((frames, h, w), np.uint8)
    for i in range(frames):
        labels[i, 16:48, 8 + i % 8 * 2 : 32 + i % 8 * 2] = 1 + i % 24
    return np.random.default_rng(frames).integers(0, 256, (frames, h, w, 3), np.uint8), labels


def write_folders(path, frames, iuv=False, suffix=".png", size=(64, 48)):
    video, labels = drawn(frames, *size)
    renders = np.stack([255 - labels * 3, labels * 2 + 30, labels], -1) if iuv else draw_labels(labels)
    for kind, pictures in (("images", video), ("densepose", renders)):
        (path / kind).mkdir(parents=True)
        for i, picture in enumerate(pictures):
            Image.fromarray(picture).save(path / kind / f"{i + 1:04d}{suffix if kind == 'images' else '.png'}")
    return video, draw_labels(labels)


def write_videos(path, name, frames, renders=None):
    path.mkdir(parents=True, exist_ok=True)
    video, labels = np.indices((frames, 64, 48)).transpose(1, 2, 3, 0).astype(np.uint8) * 3, drawn(renders or frames)[1]
    media.write_video(path / f"{name}.mp4", video, 25)
    media.write_video(path / f"{name}_densepose.mp4", draw_labels(labels), 25)
    return video, labels


def report(builder):
    written = json.loads((builder.data_path / "report.json").read_text())
    return written["clips"], [(row["clip"], row["frame"], row["reason"]) for row in written["left_out"]]


def test_tiktok_is_redrawn_from_iuv_and_split_as_by_disco(tmp_path):
    raw = {name: write_folders(tmp_path / "TikTok_dataset" / name, 4, iuv=True) for name in ("00001", "00334", "00335")}
    builder = prepare("tiktok", tmp_path, tmp_path / "data", min_frames=4)
    assert report(builder) == ({"train": ["00001", "00334"], "test": ["00335"]}, [])
    assert builder.info.splits["train"].shard_lengths == [4, 4]
    clip = record_clips("tiktok", tmp_path / "data", "train")[1]
    assert (clip.name, clip.frames, clip.fps) == ("00334", 4, media.DEFAULT_FPS)
    for got, expected in zip(pickle.loads(pickle.dumps(clip)).read(np.array([3, 0, 0])), raw["00334"], strict=True):
        np.testing.assert_array_equal(got, expected[[3, 0, 0]])

    source = builder.as_data_source(
        "test", decoders={"image": tfds.decode.SkipDecoding()}
    )  # as anyone else would read it
    assert source[2]["image"] == (tmp_path / "TikTok_dataset/00335/images/0003.png").read_bytes()
    assert (source[2]["clip"], source[2]["frame"]) == (b"00335", 2)
    np.testing.assert_array_equal(source[2]["motion"], raw["00335"][1][2])


def test_what_is_left_out_is_reported(tmp_path, caplog):
    video, motion = write_folders(tmp_path / "00001", 12, iuv=True)
    broken = tmp_path / "00001/images/0004.png"
    broken.write_bytes(broken.read_bytes()[:2000])
    write_folders(tmp_path / "00002", 6, iuv=True)
    (tmp_path / "00002/densepose/0003.png").unlink()
    write_folders(tmp_path / "00003", 4, iuv=True)
    write_folders(tmp_path / "00004", 5)
    write_folders(tmp_path / "00005", 5, iuv=True)
    Image.new("RGB", (10, 20)).save(tmp_path / "00005/images/0001.png")
    Image.new("RGB", (48, 64)).save(tmp_path / "00005/densepose/0002.png")
    (tmp_path / "00001/images/._0001.png").write_text("not a picture")

    clips, left_out = report(prepare("tiktok", tmp_path, tmp_path / "data", min_frames=5))
    assert clips == {"train": ["00001"]}
    reasons = {(clip, frame): reason for clip, frame, reason in left_out}
    assert [key for key in reasons if key[0] == "00001"] == [
        ("00001", name) for name in ("0004", "0001", "0002", "0003")
    ]
    assert "truncated" in reasons["00001", "0004"] and "outside the longest unbroken run" in reasons["00001", "0003"]
    assert "no render" in reasons["00002", "0003"]
    assert reasons["00002", None] == reasons["00005", None] == "expected at least 5 good frames in a row, found 3"
    assert reasons["00003", None].endswith("found 4")
    assert "parts 0 to 24 in its blue channel, found 99" in reasons["00004", "0001"]
    assert "found 20x10 and 64x48" in reasons["00005", "0001"] and "only background" in reasons["00005", "0002"]
    assert "00001/0004: " in caplog.text and "; 00002/0003: " in caplog.text and "; and of 2 more" in caplog.text

    (clip,) = record_clips("tiktok", tmp_path / "data", "train")
    assert clip.frames == 8
    np.testing.assert_array_equal(clip.read(np.arange(8))[0], video[4:])
    np.testing.assert_array_equal(clip.read(np.arange(8))[1], motion[4:])
    with pytest.raises(InputError, match="found only some to train with"):
        record_clips("tiktok", tmp_path / "data", "test")


def test_ted_talks_are_pairs_of_videos(tmp_path):
    folder = tmp_path / "TED384-v2"
    video, labels = write_videos(folder / "train", "a#1#20", 20)
    write_videos(folder / "train", "b", 20, renders=19)
    write_videos(folder / "train", "c", 2)
    (folder / "train/c_densepose.mp4").unlink()
    (folder / "test").mkdir()
    (folder / "test/d.mp4").write_text("not a video")
    (folder / "test/d_densepose.mp4").write_text("not a video")
    builder = prepare("ted_talks", tmp_path, tmp_path / "data")
    clips, left_out = report(builder)
    assert clips == {"train": ["a#1#20"]}
    assert [(clip, frame) for clip, frame, _ in left_out] == [(name, None) for name in "bbccdd"]
    reasons = [reason for _, _, reason in left_out]
    assert "the renders end after 19" in reasons[0]
    assert "found only one" in reasons[2]
    assert "is not a video" in reasons[4]

    (clip,) = record_clips("ted_talks", tmp_path / "data", "train")
    frames, motion = clip.read(np.arange(20))
    assert np.abs(frames.astype(int) - video).mean() < 3
    stored_labels, distances = read_labels(motion)
    assert distances.max() == 0 and (stored_labels == labels).mean() > 0.98
    stored = builder.as_data_source("train", decoders={"image": tfds.decode.SkipDecoding()})[0]["image"]
    assert JpegImagePlugin.get_sampling(Image.open(io.BytesIO(stored))) == 0  # 4:4:4


def test_clips_of_both_forms_and_both_ways_to_split(tmp_path):
    def split(folder):
        return {split: [raw.name for raw in clips] for split, clips in LAYOUTS["clips"].find(folder).items()}

    for name in "abcdefghijkl":
        (tmp_path / "many" / name / "images").mkdir(parents=True)
    assert split(tmp_path / "many") == {"train": [*"abcdefghikl"], "test": ["j"]}
    for name in "ab":
        (tmp_path / "few" / name / "densepose").mkdir(parents=True)
    assert split(tmp_path / "few") == {"train": ["a"], "test": ["b"]}
    (tmp_path / "one" / "a" / "images").mkdir(parents=True)
    with pytest.raises(InputError, match='"folder" of the config'):
        prepare("clips", tmp_path / "one", tmp_path / "data")

    raw = tmp_path / "raw"
    _, motion = write_folders(raw / "train" / "b", 3, suffix=".jpg")
    write_videos(raw / "train", "a", 2)
    write_videos(raw / "train", "b", 5)  # the folder goes before it
    write_folders(raw / "test" / "c", 2)
    builder = prepare("clips", raw, tmp_path / "data", min_frames=2)
    assert report(builder) == ({"train": ["a", "b"], "test": ["c"]}, [])
    clips = record_clips("clips", tmp_path / "data", "train")
    assert [clip.frames for clip in clips] == [2, 3]
    frames, renders = clips[1].read(np.arange(3))
    np.testing.assert_array_equal(renders, motion)
    np.testing.assert_array_equal(frames[2], media.read_image(raw / "train/b/images/0003.jpg"))


def test_images_are_clips_of_one_frame(tmp_path, monkeypatch):
    monkeypatch.setattr(layouts, "IMAGES_PER_SHARD", 2)
    video, motion = write_folders(tmp_path / "raw", 6, size=(32, 48))
    (tmp_path / "raw/images/0002.png").write_bytes(b"broken")
    for kind in ("images", "densepose"):  # sizes may differ
        picture = Image.open(tmp_path / "raw" / kind / "0003.png")
        picture.crop((0, 0, 40, 32)).save(tmp_path / "raw" / kind / "0003.png")
    builder = prepare("images", tmp_path / "raw", tmp_path / "data")
    assert builder.info.splits["train"].shard_lengths == [1, 2, 2]
    assert [(clip, frame) for clip, frame, _ in report(builder)[1]] == [("images-00000", "0002")]
    clips = record_clips("images", tmp_path / "data", "train")
    assert [(clip.name, clip.frames) for clip in clips] == [
        (name, 1) for name in ("0001", "0003", "0004", "0005", "0006")
    ]
    assert clips[1].read(np.array([0]))[0].shape == (1, 32, 40, 3)
    for clip, i in zip(clips, (0, None, 3, 4, 5), strict=True):
        if i is not None:
            np.testing.assert_array_equal(clip.read(np.array([0])), [video[i : i + 1], motion[i : i + 1]])
    with pytest.raises(IndexError):
        clips[1].read(np.array([1]))  # which would be another clip's


def test_bad_pictures_of_every_kind_are_left_out(tmp_path):
    """Pillow raises something else at each: of too many pixels, of a broken chunk, of no pixels, of a cut header."""
    write_folders(tmp_path / "raw", 6, size=(32, 48))
    for number, (old, new) in enumerate(
        (
            (struct.pack(">II", 48, 32), struct.pack(">II", 48000, 32000)),
            (b"IDAT", b"\xff\xfe\0\0"),
            (struct.pack(">II", 48, 32), struct.pack(">II", 0, 0)),
            (b"\0\0\0\rIHDR", b"\0\0\0\3IHDR"),
        ),
        2,
    ):
        path = tmp_path / "raw" / "images" / f"{number:04d}.png"
        chunks = path.read_bytes().replace(old, new, 1)
        header = struct.pack(">I", zlib.crc32(chunks[12:29]))
        path.write_bytes(chunks[:29] + header + chunks[33:])
    clips, left_out = report(prepare("images", tmp_path / "raw", tmp_path / "data"))
    assert clips == {"train": ["0001", "0006"]}
    assert [frame for _, frame, _ in left_out] == ["0002", "0003", "0004", "0005"]


def test_renders_are_read_alone(tmp_path, monkeypatch):
    _, motion = write_folders(tmp_path / "raw" / "train" / "a", 4)
    write_folders(tmp_path / "raw" / "test" / "b", 4)
    prepare("clips", tmp_path / "raw", tmp_path / "data", min_frames=2)
    (clip,) = record_clips("clips", tmp_path / "data", "train")
    decoded, read_image = [], media.read_image
    monkeypatch.setattr(media, "read_image", lambda file: decoded.append(file) or read_image(file))
    np.testing.assert_array_equal(clip.read_motion(np.array([3, 1])), motion[[3, 1]])
    assert len(decoded) == 2


def test_an_interrupted_preparation_goes_on(tmp_path, monkeypatch):
    raws = {name: write_folders(tmp_path / "raw" / name, 2, iuv=True) for name in ("00001", "00002", "00003", "00004")}
    done, read_raw = [], raw.read_raw

    def interrupted(clip):
        done.append(clip.name)
        if clip.name == "00003" and done.count("00003") == 1:
            raise KeyboardInterrupt
        return read_raw(clip)

    monkeypatch.setattr("mafx.data.staging.read_raw", interrupted)

    def run():
        return prepare("tiktok", tmp_path / "raw", tmp_path / "data", min_frames=2)

    with pytest.raises(KeyboardInterrupt):
        run()
    assert {"00001", "00002"} < {*done}
    assert not (tmp_path / "data/tiktok/1.0.0").exists()
    (tmp_path / "data/tiktok/incomplete.ABCDEF_1.0.0").mkdir(parents=True)  # what a killed one leaves
    done[:] = ["00003"]
    os.utime(tmp_path / "raw/00002/images/0001.png", ns=(0, 0))  # changed since
    assert report(run()) == ({"train": [*raws]}, [])
    assert {"00002", "00003"} <= {*done[1:]} <= {"00002", "00003", "00004"}
    for clip in record_clips("tiktok", tmp_path / "data", "train"):
        np.testing.assert_array_equal(clip.read(np.arange(2)), raws[clip.name])
    assert [p.name for folder in (tmp_path / "data", tmp_path / "data/tiktok") for p in folder.iterdir()] == [
        "tiktok",
        "1.0.0",
    ]
    done.clear()
    assert prepare("tiktok", tmp_path / "gone", tmp_path / "data").is_prepared() and not done


def test_what_the_user_can_mend(tmp_path):
    with pytest.raises(InputError, match="'tictoc' is unknown, expected one of tiktok, ted_talks, clips, images"):
        prepare("tictoc", tmp_path, tmp_path)
    with pytest.raises(InputError, match="run python -m mafx.data.builders tiktok --manual_dir DOWNLOADED --data_dir"):
        record_clips("tiktok", tmp_path, "train")
    with pytest.raises(InputError, match="expected TikTok_dataset/00001/images/0001.png.*found no folder"):
        prepare("tiktok", tmp_path / "nowhere", tmp_path)
    (tmp_path / "raw/unrelated").mkdir(parents=True)
    for name in PREPARED:
        with pytest.raises(InputError, match="found none of that"):
            prepare(name, tmp_path / "raw", tmp_path / "data")
    write_folders(tmp_path / "raw" / "00001", 2)
    with pytest.raises(InputError, match="that can be used, found none: 00001/0001: expected an IUV render"):
        prepare("tiktok", tmp_path / "raw", tmp_path / "data")


def test_every_name_is_a_data_set(tmp_path):
    assert set(PREPARED) < set(DATASETS)
    for name in DATASETS:
        settings = ConfigDict(
            {"name": name, "path": str(tmp_path), "size": (16, 16), "test_clips": 2, "train_frames": 1}
        )
        if name == "puppets":
            assert [clip.size for clip in find_clips(settings, "test")] == [(16, 16)] * 2
        else:
            with pytest.raises(InputError, match="expected"):
                find_clips(settings, "test")
    with pytest.raises(InputError, match="data set 'tictoc' is unknown, expected one of puppets, folder, tiktok"):
        find_clips(ConfigDict({"name": "tictoc"}), "test")


def test_names_of_data_sets_are_known_without_tensorflow_datasets():
    code = "import sys, mafx.data.datasets; print([x for x in ('tensorflow_datasets', 'grain') if x in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


def test_a_new_layout_is_a_data_set(tmp_path, monkeypatch):
    layout = layouts.Layout("dancers", "NAME/images and NAME/densepose", lambda folder: {"test": raw.find_raw(folder)})
    monkeypatch.setitem(builders.BUILDERS, "dancers", builders.builder_class(layout))
    _, motion = write_folders(tmp_path / "raw" / "a", 2)
    prepare("dancers", tmp_path / "raw", tmp_path / "data", min_frames=2)
    (clip,) = record_clips("dancers", tmp_path / "data", "test")
    np.testing.assert_array_equal(clip.read(np.arange(2))[1], motion)


def test_command_without_tensorflow(tmp_path, capsys):
    assert main(["tiktok", "--manual_dir", str(tmp_path / "nowhere"), "--data_dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("python -m mafx.data.builders: expected TikTok_dataset")
    write_folders(tmp_path / "raw" / "00001", 2, iuv=True)
    (tmp_path / "tensorflow.py").write_text("raise RuntimeError('TensorFlow was imported')")
    flags = ["tiktok", "--manual_dir", "raw", "--data_dir", "data", "--min_frames", "2"]
    command = [sys.executable, "-m", "mafx.data.builders", *flags]
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "", "tensorflow-datasets is quiet"
    lines = [line for line in done.stderr.splitlines() if line and "/1 [" not in line]
    assert lines == ["Prepared tiktok: 1 train clips."]
    assert record_clips("tiktok", tmp_path / "data", "train")[0].frames == 2


def test_videos_of_cameras_are_clips(tmp_path):
    """Other suffixes than .mp4, and in upper case."""
    for name in ("a", "b"):
        write_videos(tmp_path, name, 20)
    (tmp_path / "a.mp4").rename(tmp_path / "a.MP4")
    (tmp_path / "b.mp4").rename(tmp_path / "b.MOV")
    clips, _ = report(prepare("clips", tmp_path, tmp_path / "data"))
    assert clips == {"train": ["a"], "test": ["b"]}


def test_another_download_is_not_there_already(tmp_path):
    for download in ("one", "other"):
        for name in ("a", "b"):
            write_videos(tmp_path / download, name, 20 if download == "one" else 24)
    prepare("clips", tmp_path / "one", tmp_path / "data")
    prepare("clips", tmp_path / "one", tmp_path / "data")
    with pytest.raises(InputError, match="was made of other files than those in .*other; delete that folder"):
        prepare("clips", tmp_path / "other", tmp_path / "data")
    prepare("clips", tmp_path / "gone", tmp_path / "data")  # downloads may be deleted


def test_a_split_without_clips_is_told(tmp_path, caplog):
    write_videos(tmp_path, "a", 20)
    write_videos(tmp_path, "b", 8)
    clips, _ = report(prepare("clips", tmp_path, tmp_path / "data"))
    assert clips == {"train": ["a"]} and "No clip is left to test with." in caplog.text
