"""What `mafx.benchmarks.fuzz` reads: for every reader of files, real files, and how they are read and used."""

import dataclasses
import functools
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from PIL import Image

import mafx
from mafx import media
from mafx.bundled.release import joined_logs
from mafx.data.builders import open_shard, prepare, record_clips
from mafx.data.clips import FolderClip, PuppetClip
from mafx.data.latents import LatentClip
from mafx.data.raw import find_raw
from mafx.data.staging import stage
from mafx.evaluation.protocol import read_metrics
from mafx.evaluation.summary import compare, frechet_distances, table
from mafx.jobs import find_clips
from mafx.low_rank import Update, apply_update, read_update, write_update
from mafx.models.animator import SIZES, parameter_shapes
from mafx.models.text import TextConfig, Tokenizer
from mafx.pretrained.configs import AUTOENCODER, PublishedConfigs, read_configs, write_configs
from mafx.pretrained.formats import open_tensors
from mafx.pretrained.safetensors_files import write_safetensors
from mafx.pretrained.torch_files import write_torch_archive
from mafx.sources import find_source
from mafx.stamps import read_stamp, write_stamp
from mafx.training.checkpoints import Checkpoints
from mafx.training.config import parse_config
from mafx.training.optimiser import make_optimiser
from mafx.training.runs import CONFIG_FILE, load_run, run_facts
from mafx.training.step import init_state

SIZE = (24, 16)


@dataclasses.dataclass(frozen=True)
class Reader:
    """A reader of files.

    Attributes:
      write: Writes real files into a new folder.
      read: Reads a folder, one file of which was changed, and uses what was read.
      slowness: Only one case in so many is run.
    """

    write: Callable[[Path], None]
    read: Callable[[Path, Path], object]
    slowness: int = 1


@functools.cache
def _clip(frames: int = 5, size: media.Size = SIZE) -> tuple[np.ndarray, np.ndarray]:
    return PuppetClip(0, 0, size).read(np.arange(frames))


# -- Pictures and videos


def _write_pictures(folder: Path) -> None:
    folder.mkdir(parents=True)
    rgb = Image.fromarray(_clip()[0][0])
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter
    for name, picture, options in (
        ("rgb.png", rgb, {}),
        ("alpha.png", rgb.convert("RGBA"), {}),
        ("palette.png", rgb.quantize(8), {"transparency": 0}),
        ("deep.png", Image.fromarray(np.arange(384, dtype=np.uint16).reshape(SIZE) * 100), {}),
        ("plain.jpg", rgb, {"exif": exif}),
        ("progressive.jpg", rgb, {"progressive": True}),
        ("cmyk.jpg", rgb.convert("CMYK"), {}),
        ("a.webp", rgb, {}),
        ("lossless.webp", rgb.convert("RGBA"), {"lossless": True}),
        ("a.gif", rgb, {}),
        ("a.bmp", rgb, {}),
        ("a.tif", rgb, {}),
        ("packed.tif", rgb, {"compression": "tiff_lzw"}),
        ("jpeg.tif", rgb, {"compression": "jpeg"}),
        ("float.tiff", rgb.convert("F"), {}),
    ):
        picture.save(folder / name, **options)


def _write_videos(folder: Path) -> None:
    import av  # noqa: PLC0415 (slow to import)

    folder.mkdir(parents=True)
    video = _clip(5, (48, 32))[0]
    for name in ("a.mp4", "a.gif", "a.webp"):
        media.write_video(folder / name, video, 10)
    for name, codec in (("a.mkv", "libx264"), ("a.avi", "mpeg4"), ("a.mov", "mjpeg"), ("a.ts", "mpeg2video")):
        with av.open(str(folder / name), "w") as container:
            stream: Any = container.add_stream(codec, rate=25)
            stream.height, stream.width = video.shape[1:3]
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            for frame in video:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())


def _write_frames(folder: Path) -> None:
    for half, video in zip(("images", "densepose"), _clip(), strict=True):
        (folder / "clip" / half).mkdir(parents=True)
        for i, frame in enumerate(video):
            Image.fromarray(frame).save(folder / "clip" / half / f"{i}.png")


def _read_frames(folder: Path, _: Path) -> None:
    media.read_video(folder / "clip" / "images")
    clip = FolderClip(folder / "clip")
    clip.read(np.arange(clip.frames))


# -- Weights


def _tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    dtypes = (np.float32, np.float16, np.int64)
    return {f"a.{np.dtype(x).name}": rng.normal(size=(3, 4)).astype(x) for x in dtypes} | {
        "b": np.asarray(1, np.float32)
    }


def _write_tensors(name: str, folder: Path) -> None:
    folder.mkdir(parents=True)
    if name.endswith("safetensors"):
        write_safetensors(folder / name, _tensors())
    elif name.endswith("pkl"):
        (folder / name).write_bytes(pickle.dumps({"model": _tensors(), "__author__": "nobody"}, protocol=4))
    else:
        write_torch_archive(folder / name, _tensors().items())


def _read_tensors(folder: Path, _: Path) -> None:
    for path in folder.iterdir():
        file = open_tensors(path)
        for name in file.shapes:
            file.read(name)


def _write_published(folder: Path) -> None:
    write_configs(folder, PublishedConfigs(SIZES["tiny"], size=(64, 64)))


def _read_published(folder: Path, changed: Path) -> None:
    config = read_configs(folder).config
    # Networks are built from what is still a config, in the parts that the file describes; all parts take seconds.
    if changed.parent.name in (Path(AUTOENCODER).name, "text_encoder") and config != SIZES["tiny"]:
        small = dataclasses.replace(SIZES["puppets"], autoencoder=config.autoencoder, text=config.text)
        factor = config.autoencoder.factor
        unet = dataclasses.replace(
            small.unet, channels=getattr(config.autoencoder, "channels", 3 * factor**2), text_width=config.text.width
        )
        parameter_shapes(dataclasses.replace(small, unet=unet, motion_widths=(8,) * (factor.bit_length())))


def _write_vocabulary(folder: Path) -> None:
    folder.mkdir(parents=True)
    letters = [chr(i) for i in range(97, 123)]
    words = [*letters, *(f"{x}</w>" for x in letters), "ab", "ab</w>", "abc</w>", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\na b\na b</w>\nab c</w>\n")


def _read_vocabulary(folder: Path, _: Path) -> None:
    Tokenizer.from_directory(folder, TextConfig(vocabulary=100))("abc, a cab! \U0001f600")


def _write_update(folder: Path) -> None:
    folder.mkdir(parents=True)
    name, x = "unet/encoder/conv_in/kernel", np.ones((9 * SIZES["puppets"].unet.channels, 2), np.float32)
    b = np.zeros((2, SIZES["puppets"].unet.widths[0]), np.float32)
    write_update(folder / "update.safetensors", Update({name: (x, b)}, ""))


def _read_update(folder: Path, _: Path) -> None:
    apply_update(mafx.load_bundled(), read_update(folder / "update.safetensors"))


# -- Runs


def _run_config() -> ml_collections.ConfigDict:
    config = parse_config("puppets:temporal", [])
    config.data.test_clips = 2
    return config


def _write_run(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / CONFIG_FILE).write_text(_run_config().to_json_best_effort())


def _read_run(folder: Path, _: Path) -> None:
    source = find_source(None, str(folder))
    if source.data is not None and source.data.name == "puppets":
        for clip in find_clips(source.data, "test")[:1]:
            assert clip.frames


def _write_checkpoint(folder: Path) -> None:
    _write_run(folder)
    config = _run_config()
    state = init_state(mafx.load_bundled().params, config.train_only, make_optimiser(config)[0], np.dtype("float32"))
    checkpoints = Checkpoints(folder, run_facts(config, [], []))
    checkpoints.save(state, 0, config)
    checkpoints.close()


def _write_log(folder: Path) -> None:
    folder.mkdir(parents=True)
    lines = [json.dumps({"step": i, "loss": 1 / (i + 1), "speed": 2.5}) for i in range(20)]
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))


def _write_stamp(folder: Path) -> None:
    folder.mkdir(parents=True)
    write_stamp(folder / "stamp.json", {"run": "a", "step": 3, "weights": {"ema": "0123"}})


# -- Evaluations


def _write_evaluation(folder: Path) -> None:
    (folder / "features").mkdir(parents=True)
    interval = [20.0, 19.0, float("nan")]
    answers = {"result": {"psnr": 20.0, "l1": 0.1}, "copying": {"psnr": 15.0}, "truth": {"flicker_unseen": 0.1}}
    mean = {answer: dict.fromkeys(scores, interval) for answer, scores in answers.items()}
    clips = {f"clip{i}": answers for i in range(3)}
    content = {"settings": {"steps": 1, "split": list(clips)}, "mean": mean, "clips": clips}
    (folder / "metrics.json").write_text(json.dumps(content, indent=2))
    features = {f"{answer}/fid": np.eye(3, dtype=np.float32) for answer in ("result", "truth")}
    np.savez(folder / "features" / "clip0.npz", **features)  # type: ignore[arg-type] # names of arrays are free


def _read_evaluation(folder: Path, changed: Path) -> None:
    if changed.suffix == ".npz":
        frechet_distances([folder / "features" / "clip0.npz"])
        return
    evaluation = read_metrics(folder)
    table(evaluation["mean"])
    table(compare(evaluation, evaluation))


# -- Data


def _write_latents(folder: Path) -> None:
    folder.mkdir(parents=True)
    np.save(folder / "a.npy", np.ones((4, 3, 2, 4), np.float16))


def _read_latents(folder: Path, _: Path) -> None:
    LatentClip(PuppetClip(0, 0, SIZE, frames=4), folder / "a.npy").read(np.arange(4))


def _write_records(folder: Path) -> None:
    raw = folder.parent / "raw records"
    _write_images(raw)
    prepare("images", raw, folder)


def _write_images(folder: Path) -> None:
    for half, video in zip(("images", "densepose"), _clip(3), strict=True):
        (folder / half).mkdir(parents=True)
        for i, frame in enumerate(video):
            Image.fromarray(frame).save(folder / half / f"{i}.png")


def _read_records(folder: Path, _: Path) -> None:
    open_shard.cache_clear()
    for clip in record_clips("images", folder, "train"):
        clip.read(np.arange(clip.frames))


def _write_download(folder: Path) -> None:
    """Two clips of pictures, one of videos, and a zip of a preparation that was interrupted."""
    _write_frames(folder / "raw")
    (folder / "raw" / "clip").rename(folder / "raw" / "first")
    _write_frames(folder / "raw")
    for name, video in zip(("video.mp4", "video_densepose.mp4"), _clip(5, (64, 64)), strict=True):
        media.write_video(folder / "raw" / name, video, 25)
    for raw in find_raw(folder / "raw"):
        stage(raw, folder / "data" / "clips.staging" / "train" / f"{raw.name}.zip")


def _read_download(folder: Path, _: Path) -> None:
    prepare("clips", folder / "raw", folder / "data", min_frames=1)


READERS = {
    "pictures": Reader(_write_pictures, lambda _, path: media.read_image(path)),
    "videos": Reader(_write_videos, lambda _, path: media.read_video(path)),
    "frames": Reader(_write_frames, _read_frames),
    "safetensors": Reader(functools.partial(_write_tensors, "a.safetensors"), _read_tensors),
    "archives": Reader(functools.partial(_write_tensors, "a.ckpt"), _read_tensors),
    "pickles": Reader(functools.partial(_write_tensors, "a.pkl"), _read_tensors),
    "published configs": Reader(_write_published, _read_published),
    "vocabulary": Reader(_write_vocabulary, _read_vocabulary),
    "low-rank update": Reader(_write_update, _read_update, slowness=4),
    "config of a run": Reader(_write_run, _read_run),
    "checkpoint": Reader(_write_checkpoint, lambda folder, _: load_run(folder), slowness=20),
    "log": Reader(_write_log, lambda folder, _: joined_logs([folder])),
    "stamp": Reader(_write_stamp, lambda folder, _: read_stamp(folder / "stamp.json")),
    "evaluation": Reader(_write_evaluation, _read_evaluation),
    "latents": Reader(_write_latents, _read_latents),
    "records": Reader(_write_records, _read_records, slowness=4),
    "downloaded clips": Reader(_write_download, _read_download, slowness=4),
}
