"""Files that are broken or hostile: every reader refuses them in one line that names the file, quickly and in little
memory. `python -m mafx.benchmarks.fuzz` looks for more of them; what it finds is kept here."""

import json
import os
import shutil
import struct
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from micro import example
from PIL import Image

from mafx import media
from mafx.bundled import FOLDER, bundled_config
from mafx.bundled.release import joined_logs
from mafx.data.builders import Report, open_shard, prepare, record_clips
from mafx.data.clips import FolderClip, PuppetClip
from mafx.data.datasets import find_clips
from mafx.data.latents import LatentClip
from mafx.data.raw import Raw, find_raw
from mafx.data.staging import stage
from mafx.errors import InputError
from mafx.evaluation.protocol import read_metrics
from mafx.evaluation.summary import frechet_distances
from mafx.models.text import TextConfig, Tokenizer
from mafx.pretrained.configs import APPEARANCE, AUTOENCODER, CONTROL, INFERENCE, TEXT, UNET, read_configs
from mafx.pretrained.formats import open_tensors
from mafx.training.runs import read_config

WEIGHTS = Path(__file__).parent / "published" / "weights"
UNETS = (UNET, CONTROL, APPEARANCE)
DEEP = [1]
for _ in range(200):
    DEEP = [DEEP]


def refused(read, *args, match=None):
    """Reading raises an InputError of one line."""
    with pytest.raises(InputError, match=match) as caught:
        read(*args)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 2000, message


# -- JSON


@pytest.fixture
def configs(tmp_path):
    """The JSON files of a folder of weights."""
    for path in WEIGHTS.rglob("*.json"):
        target = tmp_path / path.relative_to(WEIGHTS)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    read_configs(tmp_path)
    return tmp_path


def change(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("folders", "changes"),
    [
        (UNETS, {"block_out_channels": [32] * 49}),
        (UNETS, {"block_out_channels": [32, 10**9]}),
        (UNETS, {"block_out_channels": [32, "32"]}),
        (UNETS, {"block_out_channels": [33, 33]}),
        (UNETS, {"block_out_channels": []}),
        (UNETS, {"block_out_channels": None}),
        (UNETS, {"block_out_channels": DEEP}),
        (UNETS, {"down_block_types": [1, 2]}),
        (UNETS, {"down_block_types": "Cross"}),
        (UNETS, {"down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": None}),
        (UNETS, {"up_block_types": 7}),
        (UNETS, {"layers_per_block": 10**9}),
        (UNETS, {"layers_per_block": 0}),
        (UNETS, {"layers_per_block": 1.5}),
        (UNETS, {"attention_head_dim": 0}),
        (UNETS, {"attention_head_dim": -2}),
        (UNETS, {"attention_head_dim": 7}),
        (UNETS, {"attention_head_dim": "8"}),
        (UNETS, {"attention_head_dim": None}),
        (UNETS, {"num_attention_heads": {"a": 1}}),
        (UNETS, {"norm_num_groups": 0}),
        (UNETS, {"norm_eps": float("nan")}),
        (UNETS, {"norm_eps": -1}),
        (UNETS, {"in_channels": True}),
        (UNETS, {"in_channels": 5}),
        (UNETS, {"cross_attention_dim": [1]}),
        (UNETS, {"position_sinusoids": "no"}),
        ((CONTROL,), {"conditioning_embedding_out_channels": [16] * 6}),
        ((CONTROL,), {"conditioning_embedding_out_channels": 16}),
        ((AUTOENCODER,), {"block_out_channels": [8] * 49}),
        ((AUTOENCODER,), {"block_out_channels": {"0": 8}}),
        ((AUTOENCODER,), {"scaling_factor": float("inf")}),
        ((AUTOENCODER,), {"scaling_factor": 0}),
        ((AUTOENCODER,), {"_class_name": "Patches"}),
        ((AUTOENCODER,), {"_class_name": "Patches", "patch_size": 0}),
        ((TEXT,), {"hidden_act": ["gelu"]}),
        ((TEXT,), {"num_hidden_layers": 10**6}),
        ((TEXT,), {"num_attention_heads": 0}),
        ((TEXT,), {"max_position_embeddings": -1}),
        ((TEXT,), {"vocab_size": 10**12}),
        ((TEXT,), {"hidden_size": 10**30}),
    ],
)
def test_sizes_are_checked_before_a_network_is_built(configs, folders, changes):
    for folder in folders:
        change(configs / folder / "config.json", **changes)
    refused(read_configs, configs)


@pytest.mark.parametrize(
    "changes",
    [
        {"unet_additional_kwargs": []},
        {"unet_additional_kwargs": {"motion_module_kwargs": 3}},
        {"unet_additional_kwargs": {"motion_module_kwargs": {"num_attention_heads": 0}}},
        {"unet_additional_kwargs": {"motion_module_kwargs": {"norm_num_groups": 7}}},
        {"unet_additional_kwargs": {"motion_module_kwargs": {"temporal_position_encoding_max_len": 10**9}}},
        {"noise_scheduler_kwargs": None},
        {"noise_scheduler_kwargs": {"beta_start": "0.1"}},
        {"noise_scheduler_kwargs": {"beta_start": 0.5, "beta_end": 0.1}},
        {"noise_scheduler_kwargs": {"beta_schedule": ["linear"]}},
        {"noise_scheduler_kwargs": {"prediction_type": {}}},
        {"noise_scheduler_kwargs": {"rescale_betas_zero_snr": True}},
        {"fusion": ["midup"]},
        {"size": [1e3, 1e3]},
        {"size": [True, True]},
    ],
)
def test_settings_of_the_whole_are_checked(configs, changes):
    change(configs / INFERENCE, **changes)
    refused(read_configs, configs, match="inference_config|do not fit together")


WORDS = ["a", "b", "ab", "<|startoftext|>", "<|endoftext|>"]


@pytest.mark.parametrize(
    ("vocabulary", "merges"),
    [
        ("[]", "a b"),
        ('{"a": 0}', ""),
        (json.dumps({word: i * 1000 for i, word in enumerate(WORDS)}), "a b"),
        (json.dumps({word: -i for i, word in enumerate(WORDS)}), "a b"),
        (json.dumps({word: str(i) for i, word in enumerate(WORDS)}), "a b"),
        (json.dumps({word: i for i, word in enumerate(WORDS)}), "a b c"),
        (json.dumps({word: i for i, word in enumerate(WORDS)}), "a"),
        (json.dumps({word: i for i, word in enumerate(WORDS)}), "a z"),
        (json.dumps({word: i for i, word in enumerate(WORDS)}), "b a"),
        (json.dumps({word: i for i, word in enumerate(WORDS)}).replace("ab", "\\ud800"), ""),
    ],
)
def test_vocabularies(tmp_path, vocabulary, merges):
    (tmp_path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(WORDS)}))
    (tmp_path / "merges.txt").write_text("a b\n")
    config = TextConfig(vocabulary=100)
    assert Tokenizer.from_directory(tmp_path, config)("")[:2].tolist() == [3, 4]
    (tmp_path / "vocab.json").write_text(vocabulary)
    (tmp_path / "merges.txt").write_text(merges)
    refused(Tokenizer.from_directory, tmp_path, config)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "huge"},
        {"model": ["tiny"]},
        {"remat": {}},
        {"networks": {"fusion": "all"}},
        {"networks": {"fusio": "midup"}},
        {"networks": []},
        {"schedule": {"kind": "linear", "predictions": "v"}},
        {"schedule": {"kind": "cosine"}},
        {"schedule": {"beta_start": -1.0}},
        {"schedule": {"zero_terminal_snr": 1}},
        {"data": None},
        {"data": {"name": "puppets", "size": "32"}},
        {"data": {"name": "puppets", "size": [0, 32]}},
        {"data": {"name": "puppets", "size": [32, 32], "test_clips": -1}},
        {"show_guidance": "2"},
        {"show_guidance": float("nan")},
        {"extra": DEEP},
    ],
)
def test_configs_of_runs(tmp_path, changes):
    path = tmp_path / "config.json"
    shutil.copy(FOLDER / "config.json", path)
    assert read_config(tmp_path).model == "puppets"
    change(path, **changes)
    refused(read_config, tmp_path, match="config.json")


@pytest.mark.parametrize(
    "changes",
    [
        {"clips": []},
        {"clips": {"a": {}}},
        {"clips": {"a": {"result": {"psnr": "20"}}}},
        {"mean": {"result": {"psnr": [1, 2]}}},
        {"mean": 3},
        {"settings": None},
    ],
)
def test_evaluations(tmp_path, changes):
    mean = {"result": {"psnr": [20.0, float("nan"), float("nan")]}}
    content = {"settings": {}, "mean": mean, "clips": {"a": {"result": {"psnr": 20.0}}}}
    (tmp_path / "metrics.json").write_text(json.dumps(content))
    assert read_metrics(tmp_path)["clips"] == content["clips"]
    change(tmp_path / "metrics.json", **changes)
    refused(read_metrics, tmp_path, match="metrics.json")


@pytest.mark.parametrize(
    "arrays", [{"result": np.ones((2, 2))}, {"result/fid": np.ones(2)}, {"result/fid": np.full((2, 2), np.nan)}]
)
def test_features(tmp_path, arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    refused(frechet_distances, [tmp_path / "a.npz"], match="a.npz")


@pytest.mark.parametrize("line", ['{"step": 1, "loss": "x"}', "[1]", "{", "\0", ""])
def test_logs(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n')
    refused(joined_logs, [tmp_path], match="metrics.jsonl, line 2")


@pytest.mark.parametrize(
    "changes",
    [
        {"clips": {"test": ["../../out"]}},
        {"clips": {"test": ["/tmp/out"]}},
        {"clips": {"test": ["a\nb"]}},
        {"clips": {"test": [1]}},
        {"clips": ["a"]},
        {"left_out": [{"clip": "a"}]},
        {"left_out": [1]},
        {"min_frames": "16"},
    ],
)
def test_reports(tmp_path, changes):
    Report(16, {"test": ["a"]}, []).write(tmp_path)
    assert Report.read(tmp_path) == Report(16, {"test": ["a"]}, [])
    change(tmp_path / "report.json", **changes)
    refused(Report.read, tmp_path, match="report.json")


def test_names_of_several_lines(tmp_path):
    (tmp_path / "a\nb" / "images").mkdir(parents=True)
    refused(find_raw, tmp_path, match="name without folders and of one line")


@pytest.mark.parametrize("index", ["{", "[]", '{"fingerprint": 1}', '{"fingerprint": "", "kept": 1, "left_out": []}'])
def test_checked_clips_are_checked_anew(tmp_path, index):
    """A zip that cannot be read is replaced, as one of other files is."""
    raw = Raw("a", "pictures", {}, {})
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("clip.json", index)
    assert stage(raw, tmp_path / "a.zip").kept == []
    (tmp_path / "a.zip").write_bytes(b"PK")
    assert stage(raw, tmp_path / "a.zip").kept == []


def test_puppets_of_no_number():
    config = bundled_config()
    config.data.test_clips = None
    refused(find_clips, config.data, "test", match="config.data.test_clips: expected a number of puppets")


# -- Arrays


@pytest.mark.parametrize(
    "latents", [np.full((4, 2, 2, 4), np.nan, np.float16), np.ones((2, 2, 2, 4), np.float16), np.ones((4, 2, 2, 4))]
)
def test_latents(tmp_path, latents):
    clip = LatentClip(PuppetClip(0, 0, (16, 16), frames=4), tmp_path / "a.npy")
    np.save(clip.path, np.ones((4, 2, 2, 4), np.float16))
    assert clip.read(np.array([3]))[0].shape == (1, 2, 2, 4)
    np.save(clip.path, latents)
    refused(clip.read, np.array([3]), match="a.npy")


# -- Pictures and videos


def black_png(path, side):
    """A PNG of side x side black pixels, without the memory that they would take."""
    row = zlib.compressobj(9)
    data = b"".join(row.compress(bytes(1 + side)) for _ in range(side)) + row.flush()
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)), (b"IDAT", data), (b"IEND", b""))
    packed = (struct.pack(">I", len(x)) + kind + x + struct.pack(">I", zlib.crc32(kind + x)) for kind, x in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))


def test_pictures_of_too_many_pixels(tmp_path, monkeypatch):
    black_png(tmp_path / "bomb.png", 13_000)
    refused(media.read_image, tmp_path / "bomb.png", match=r"169000000 pixels.*45000000.*--max_pixels 169000000")
    with (tmp_path / "bomb.png").open("rb") as file:
        refused(media.read_image, file, match="169000000 pixels")
    black_png(tmp_path / "small.png", 20)
    monkeypatch.setenv("MAFX_MAX_PIXELS", "399")
    refused(media.read_image, tmp_path / "small.png", match="400 pixels")
    monkeypatch.setenv("MAFX_MAX_PIXELS", "400")
    assert media.read_image(tmp_path / "small.png").shape == (20, 20, 3)


def test_large_photographs_are_reduced(tmp_path, monkeypatch):
    gradient = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 128, 1)
    Image.fromarray(gradient).convert("RGB").save(tmp_path / "a.jpg", quality=95)
    Image.fromarray(gradient).save(tmp_path / "progressive.jpg", progressive=True)
    whole = media.read_image(tmp_path / "a.jpg")
    monkeypatch.setenv("MAFX_MAX_PIXELS", str(64 * 32))
    reduced = media.read_image(tmp_path / "a.jpg")
    assert reduced.shape == (64, 32, 3)
    assert np.abs(reduced.astype(int) - whole[1::4, 1::4]).max() <= 3
    refused(media.read_image, tmp_path / "progressive.jpg", match="32768 pixels")
    monkeypatch.setenv("MAFX_MAX_PIXELS", "100")
    refused(media.read_image, tmp_path / "a.jpg", match="512 pixels")  # even an eighth is too large


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.mp4", "folder"])
def test_videos_of_too_many_frames_and_bytes(tmp_path, monkeypatch, name):
    video = np.random.default_rng(0).integers(0, 255, (6, 16, 32, 3), np.uint8)
    media.write_video(tmp_path / name, video, 10)
    monkeypatch.setenv("MAFX_MAX_FRAMES", "5")
    refused(media.read_video, tmp_path / name, match=f"{name} has 6 frames, and at most 5.*--max_frames 6")
    assert len(media.read_video(tmp_path / name, limit=5)[0]) == 5
    monkeypatch.setenv("MAFX_MAX_FRAMES", "6")
    needed = (6 + media.AT_WORK) * video[0].nbytes
    monkeypatch.setenv("MAFX_MAX_VIDEO_BYTES", str(needed - 1))
    refused(media.read_video, tmp_path / name, match=f"{needed} bytes of frames.*--max_video_bytes")
    monkeypatch.setenv("MAFX_MAX_VIDEO_BYTES", str(needed))
    assert media.read_video(tmp_path / name)[0].shape == video.shape
    monkeypatch.setenv("MAFX_MAX_PIXELS", "511")
    refused(media.read_video, tmp_path / name, match="512 pixels")


def test_frames_that_are_made_smaller_may_be_more(tmp_path, monkeypatch):
    video = np.random.default_rng(0).integers(0, 255, (6, 16, 32, 3), np.uint8)
    media.write_video(tmp_path / "a.gif", video, 10)
    monkeypatch.setenv("MAFX_MAX_VIDEO_BYTES", str(6 * video[0].nbytes))
    refused(media.read_video, tmp_path / "a.gif", match="bytes of frames")
    got, _ = media.read_video(tmp_path / "a.gif", prepare=lambda frame: media.fit(frame, (8, 8)))
    assert got.shape == (6, 8, 8, 3)


def test_frames_are_counted_before_they_are_decoded(tmp_path):
    """100 frames of 4000x4000 pixels in 170 kB would take 4.8 GB."""
    frame = Image.new("L", (4000, 4000))
    frame.save(tmp_path / "a.gif", save_all=True, append_images=[Image.new("L", (4000, 4000), i) for i in (1, 2)])
    content = (tmp_path / "a.gif").read_bytes()
    last = content[content.rindex(b"\x21\xf9\x04") : -1]
    (tmp_path / "a.gif").write_bytes(content[:-1] + last * 97 + content[-1:])
    began = time.perf_counter()
    refused(media.read_video, tmp_path / "a.gif", match="bytes of frames")
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize("name", ["a.png", "a.mp4", "a.gif"])
def test_pipes_and_devices(tmp_path, name):
    os.mkfifo(tmp_path / name)
    for read in (media.read_image, media.read_video):
        refused(read, tmp_path / name, match="expected a file, found a pipe or a device")
    refused(media.read_video, "/dev/zero", match="expected a file, found a pipe or a device")


PLAYLIST = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nsecret.mp4\n#EXT-X-ENDLIST\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.m3u8", PLAYLIST),
        ("a.mp4", PLAYLIST),
        ("a.ffconcat", "ffconcat version 1.0\nfile secret.mp4\n"),
        ("a.mp4", "ffconcat version 1.0\nfile secret.mp4\n"),
        ("a.sdp", "v=0\nm=video 1234 RTP/AVP 96\n"),
    ],
)
def test_playlists_open_no_other_files(tmp_path, name, content):
    media.write_video(tmp_path / "secret.mp4", np.zeros((3, 16, 16, 3), np.uint8), 10)
    (tmp_path / name).write_text(content)
    refused(media.read_video, tmp_path / name, match="not a video that can be read")


def test_a_colon_in_a_name_is_no_protocol(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    media.write_video("12:30.mp4", np.zeros((3, 16, 16, 3), np.uint8), 10)
    assert len(media.read_video("12:30.mp4")[0]) == 3


def test_pictures_of_other_formats_start_no_programs(tmp_path):
    (tmp_path / "a.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    refused(media.read_image, tmp_path / "a.png", match="not a picture")


def test_links_out_of_a_folder_of_frames(tmp_path):
    black_png(tmp_path / "private.png", 4)
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "1.png").symlink_to("../private.png")
    refused(media.read_video, tmp_path / "frames", match="1.png leads out of")
    (tmp_path / "linked").symlink_to("frames")
    (tmp_path / "frames" / "1.png").unlink()
    shutil.copy(tmp_path / "private.png", tmp_path / "frames" / "2.png")
    (tmp_path / "frames" / "1.png").symlink_to("2.png")
    assert len(media.read_video(tmp_path / "linked")[0]) == 2
    shutil.copy(tmp_path / "private.png", tmp_path / "frames" / "a\nb.png")
    refused(media.read_video, tmp_path / "frames", match="of one line")


def test_frames_and_renders_of_several_sizes(tmp_path):
    (tmp_path / "clip").mkdir()
    for half in ("images", "densepose"):
        media.write_video(tmp_path / "clip" / half, np.zeros((2, 8, 8, 3), np.uint8), 10)
    clip = FolderClip(tmp_path / "clip")
    assert clip.read(np.arange(2))[0].shape == (2, 8, 8, 3)
    black_png(tmp_path / "clip" / "densepose" / "00001.png", 4)
    refused(clip.read, np.arange(2), match="of one size in .*clip, found 4x4, 8x8")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif", ".webp", ".tif", ".bmp", ".mp4"])
def test_pictures_and_videos_that_are_cut(tmp_path, suffix):
    video = np.random.default_rng(0).integers(0, 255, (3, 16, 16, 3), np.uint8)
    path = tmp_path / f"a{suffix}"
    is_video = suffix in media.VIDEO_FORMATS and suffix != ".png"
    if is_video:
        media.write_video(path, video, 10)
    else:
        Image.fromarray(video[0]).save(path)
    content = path.read_bytes()
    for length in (0, 1, 9, 30, len(content) // 3):
        path.write_bytes(content[:length])
        refused(media.read_video if is_video else media.read_image, path, match=f"a{suffix}")


def test_rates_that_nobody_can_show(tmp_path):
    Image.new("L", (4, 4)).save(
        tmp_path / "a.gif", save_all=True, append_images=[Image.new("L", (4, 4), 9)], duration=0
    )
    assert media.read_video(tmp_path / "a.gif")[1] == media.DEFAULT_FPS


# -- Records


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A prepared set of two images."""
    raw, out = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("data")
    clip = example((24, 16), 2)
    for i in range(2):
        for kind, picture in (("images", clip.video[i]), ("densepose", clip.motion[i])):
            (raw / kind).mkdir(exist_ok=True)
            Image.fromarray(picture).save(raw / kind / f"{i}.png")
    prepare("images", raw, out)
    return out


@pytest.fixture
def records(prepared, tmp_path):
    folder = shutil.copytree(prepared, tmp_path / "data")
    clips = record_clips("images", folder, "train")
    assert [clip.read(np.array([0]))[0].shape for clip in clips] == [(1, 24, 16, 3)] * 2
    open_shard.cache_clear()
    return folder


def read_all(folder):
    for clip in record_clips("images", folder, "train"):
        clip.read(np.arange(clip.frames))


@pytest.mark.parametrize("name", ["dataset_info.json", "report.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"splits": 3, "clips": 3}'])
def test_descriptions_of_records(records, name, content):
    next(records.glob(f"images/*/{name}")).write_bytes(content)
    refused(read_all, records)


def test_numbers_of_records(records):
    path = next(records.glob("images/*/report.json"))
    change(path, clips={"train": ["0", "1", "2"]})
    refused(read_all, records, match="does not hold what its report.json says.*expected records of 3 clips")
    change(path, clips={"train": ["0"]})
    refused(read_all, records, match="does not hold what its report.json says")


def test_damaged_records(records):
    shard = next(records.glob("images/*/*.array_record*"))
    content = shard.read_bytes()
    picture = content.index(b"IHDR")
    for broken in (
        b"",
        content[:100],
        content[: len(content) // 2],
        bytes(len(content)),
        content[:picture] + b"junk" + content[picture + 4 :],
    ):
        shard.write_bytes(broken)
        refused(read_all, records, match="array_record")
        open_shard.cache_clear()


def test_pipes_and_devices_among_records(records):
    path = next(records.glob("images/*/dataset_info.json"))
    path.unlink()
    path.symlink_to("/dev/zero")
    refused(read_all, records, match="leads out of")
    path.unlink()
    os.mkfifo(path)
    refused(read_all, records, match="expected a file, found a pipe")


def test_shards_elsewhere(records, tmp_path):
    shard = next(records.glob("images/*/*.array_record*"))
    shard.rename(tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    refused(read_all, records, match="leads out of")


# -- Weights


def write_header(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def tensor_entry(dtype="F32", shape=(2,), data_offsets=(0, 8)):
    return {"dtype": dtype, "shape": shape, "data_offsets": data_offsets}


@pytest.mark.parametrize(
    ("header", "match"),
    [
        ({"a": tensor_entry(data_offsets=(0, 16))}, "not the place that its shape needs"),
        ({"a": tensor_entry(data_offsets=(8, 0))}, "not the place that its shape needs"),
        ({"a": tensor_entry(data_offsets=(-8, 0))}, "expected a whole number"),
        ({"a": tensor_entry(shape=(-2,))}, "expected a whole number"),
        ({"a": tensor_entry(shape=(2**62, 2**62))}, "not the place that its shape needs"),
        ({"a": tensor_entry(shape=(0,) * 9)}, "0 to 8"),
        ({"a": tensor_entry(data_offsets=(8, 16))}, "16 bytes of tensors are announced, 8 are there"),
        ({"a": tensor_entry(), "b": tensor_entry()}, "b has not the place"),
        ({"a": tensor_entry("F8_E4M3", (8,))}, "found a of .F8_E4M3"),
        ({"a": tensor_entry("F4", (16,))}, "found a of .F4"),
        ({"a": tensor_entry("a\nb", (16,))}, "found a of"),
        ({"a": tensor_entry(["F32"])}, "expected text"),
        ({"a\nb": tensor_entry()}, "names of tensors of one line"),
        ({"a": 3}, "expected a JSON object"),
        ({"a": {}}, "lacks the setting 'dtype'"),
        ([], "expected a JSON object"),
        (b'{"a": %b, "a": %b}' % ((json.dumps(tensor_entry()).encode(),) * 2), "same name twice"),
        (b"{" * 5000, "not readable JSON"),
        (b"\xff" * 10, "not readable JSON"),
    ],
)
def test_safetensors_headers(tmp_path, header, match):
    path = tmp_path / "a.safetensors"
    write_header(path, {"__metadata__": {"format": "pt"}, "a": tensor_entry()}, bytes(8))
    assert open_tensors(path).read("a").tolist() == [0, 0]
    write_header(path, header, bytes(8))
    refused(open_tensors, path, match=f"a.safetensors.*{match}")


@pytest.mark.parametrize("length", [0, 10**6, 2**63, 2**64 - 1])
def test_safetensors_headers_of_another_length(tmp_path, length):
    write_header(tmp_path / "a.safetensors", {"a": tensor_entry()}, bytes(8), length)
    refused(open_tensors, tmp_path / "a.safetensors", match="not a whole safetensors file.*ends within its header")


def write_archive(path, program, members=(), **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("x/data.pkl", program)
        archive.writestr("x/data/0", bytes(16))
        for name, content in members:
            archive.writestr(name, content)


@pytest.mark.parametrize(
    ("program", "match"),
    [
        (b"\x80\x02}r\x00\x65\xcd\x1d.", "memo of 500000000 places"),
        (b"\x80\x02)" + b"\x85" * 10**6 + b".", "tuple of more than 1000 values"),
        (b"\x80\x02}" + b")" + b"\x85" * 10**5 + b"K\x01s.", "tuple of more than 1000 values"),
        (b"\x80\x02)" + b"2\x86" * 40 + b".", "tuple of more than 1000 values"),
        (b"\x80\x02I1\n.", "operation INT"),
        (b"\x80\x02cos\nsystem\n.", "asks for os.system"),
        (b"\x80\x02ctorch\nFloatStorage\n}b.", "was refused"),
        (b"\x80\x02h\x07.", "was refused"),
        (b"\x80\x02.", "was refused"),
        (b"\x80\x02000", "was refused"),
        (b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsK\x01sb.", "was refused"),
        (b"\x80\x02]X\x01\x00\x00\x00aa.", "expected a dict of tensors, found list"),
        (b"", "was refused"),
    ],
)
def test_pickles_are_scanned_before_they_are_interpreted(tmp_path, program, match):
    write_archive(tmp_path / "a.ckpt", program)
    began = time.perf_counter()
    refused(open_tensors, tmp_path / "a.ckpt", match=f"a.ckpt.*{match}")
    assert time.perf_counter() - began < 5


EMPTY = b"\x80\x02}."


def test_archives_that_grow(tmp_path):
    path = tmp_path / "a.ckpt"
    write_archive(path, EMPTY, [("x/data/1", bytes(2**22))], compression=zipfile.ZIP_DEFLATED)
    refused(open_tensors, path, match="is compressed or encrypted")
    write_archive(path, EMPTY)
    content = path.read_bytes()
    where = content.rindex(b"PK\x01\x02")  # the entry of data/0 in the directory: sizes of 1 GiB in a file of 200 bytes
    path.write_bytes(content[: where + 20] + struct.pack("<II", 2**30, 2**30) + content[where + 28 :])
    refused(open_tensors, path, match="not the sizes that they claim")


def torch_tensor(name=b"a", size=4, offset=0, shape=(4,), strides=(1,), record=b"0"):
    """A pickle with one float32 tensor."""

    def text(value):
        return b"X" + struct.pack("<I", len(value)) + value

    def numbers(values):
        return b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", x) for x in values) + b"t"

    storage = b"(" + text(b"storage") + b"ctorch\nFloatStorage\n" + text(record) + text(b"cpu") + numbers([size])[1:]
    where = b"\x8a\x08" + struct.pack("<q", offset) + numbers(shape) + numbers(strides)
    return b"\x80\x02}" + text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"Q" + where + b"\x89}tRs."


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": (10**9,), "strides": (0,)},
        {"shape": (4, 4), "strides": (0, 1)},
        {"shape": (3, 3), "strides": (1, 1), "size": 4},
        {"shape": (2**40,), "strides": (2**40,)},
        {"shape": (-4,)},
        {"strides": (-1,)},
        {"offset": -1},
        {"offset": 2**62},
        {"size": 2**62},
        {"size": -4, "shape": (0,)},
        {"shape": (1,) * 9, "strides": (1,) * 9},
        {"shape": (2, 2)},
        {"record": b"../../etc/passwd"},
        {"record": b"7"},
        {"name": b"a\nb"},
    ],
)
def test_tensors_of_archives(tmp_path, changes):
    path = tmp_path / "a.ckpt"
    write_archive(path, torch_tensor())
    assert open_tensors(path).read("a").tolist() == [0] * 4
    write_archive(path, torch_tensor(**changes))
    refused(open_tensors, path, match="a.ckpt")


def test_records_that_are_damaged(tmp_path):
    path = tmp_path / "a.ckpt"
    write_archive(path, torch_tensor())
    content = path.read_bytes()
    where = content.index(b"x/data/0") + len(b"x/data/0")
    path.write_bytes(content[:where] + b"\1" + content[where + 1 :])
    refused(open_tensors(path).read, "a", match="damaged at a")


def test_pipes_in_the_place_of_weights(tmp_path):
    for name in ("a.safetensors", "a.ckpt"):
        os.mkfifo(tmp_path / name)
        refused(open_tensors, tmp_path / name, match="expected a file, found a pipe")
