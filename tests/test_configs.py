"""Every config, shrunk and stepped once, on made-up data in the layouts that data sets are downloaded in."""

import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from micro import PARTS, example
from PIL import Image

from configs import card24
from configs.ablations import VARIANTS
from mafx import media
from mafx.data.builders import prepare
from mafx.errors import InputError
from mafx.pretrained.layout import save_pretrained
from mafx.training.checkpoints import read_parameters
from mafx.training.config import STAGES, check_config, default_config, parse_config
from mafx.training.loop import train

CONFIGS = sorted(path.stem for path in (Path(__file__).parent.parent / "configs").glob("[!_]*.py"))
OF_OTHERS = ("ablations", "card24", "few_steps", "personal")  # take the name of a config, a change or a size as well
CASES = [(name, stage) for name in CONFIGS if name not in OF_OTHERS for stage in STAGES]
CASES += [("card24", f"tiktok:{stage}") for stage in STAGES]
CASES += [("personal", "puppets:temporal"), ("personal", "sd15:appearance"), ("few_steps", "puppets")]
CASES += [  # whose programs are others
    ("ablations", f"{name}:{variant.stages[0]}")
    for name, variant in VARIANTS.items()
    if any(field.startswith(("networks.", "images.")) for field in variant.config)
]


def get_config(name, argument):
    return importlib.import_module(f"configs.{name}").get_config(argument)


def write_folder(folder, frames, identity, iuv=False):
    clip = example((24, 16), frames, identity, motion=identity)
    for i in range(frames):
        iuv_render = np.stack([np.full((24, 16), 7, np.uint8)] * 2 + [clip.labels[i]], -1)  # V, U, I
        for kind, picture in (("images", clip.video[i]), ("densepose", iuv_render if iuv else clip.motion[i])):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(folder / kind / f"{i + 1:04d}.png")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Prepared TikTok, TED talks, clips and images; and a single folder."""
    raw, out = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("data")
    for number, frames in ((1, 6), (2, 6), (3, 9), (4, 9), (5, 3), (335, 6)):
        write_folder(raw / "TikTok_dataset" / f"{number:05d}", frames, number, iuv=True)
    broken, missing = raw / "TikTok_dataset/00003/images/0003.png", raw / "TikTok_dataset/00004/densepose/0008.png"
    broken.write_bytes(broken.read_bytes()[:60])
    missing.unlink()
    prepare("tiktok", raw, out, min_frames=5)
    report = json.loads(next(out.glob("tiktok/*/report.json")).read_text())
    assert report["clips"] == {"train": ["00001", "00002", "00003", "00004"], "test": ["00335"]}
    reasons = {(x["clip"], x["frame"]): x["reason"] for x in report["left_out"]}
    assert "not a picture" in reasons["00003", "0003"] and "no render" in reasons["00004", "0008"]
    assert "at least 5 good frames in a row, found 3" in reasons["00005", None]

    for split, count in (("train", 2), ("test", 1)):
        folder = raw / "TED384-v2" / split
        folder.mkdir(parents=True)
        for i in range(count):
            clip = example((64, 64), 6, 10 + i, motion=i)  # large enough for compressed colours to be read
            media.write_video(folder / f"talk{i}#1#6.mp4", clip.video, 25)
            media.write_video(folder / f"talk{i}#1#6_densepose.mp4", clip.motion, 25)
    prepare("ted_talks", raw, out, min_frames=5)
    for i in range(2):
        write_folder(raw / "clips" / f"clip{i}", 6, i)
    prepare("clips", raw / "clips", out, min_frames=5)
    write_folder(raw / "images", 3, 20)
    prepare("images", raw / "images", out)
    write_folder(out / "folder", 9, 1)
    return out


@pytest.fixture(scope="module")
def stable_diffusion(micro, tmp_path_factory):
    """A folder with Stable Diffusion's networks and nothing of MagicAnimate's."""
    folder = tmp_path_factory.mktemp("weights")
    save_pretrained(micro, folder)
    shutil.rmtree(folder / "MagicAnimate")
    return folder


def shrink(config, data, init_from=""):
    config.model, config.dtype, config.init_from = "micro", "float32", str(init_from)
    config.batch, config.steps, config.remat, config.show_clips = 2, 1, "none", 0
    config.data.update(
        {"size": (16, 16), "frames": min(2, config.data.frames), "train_clips": 8, "test_clips": 1, "train_frames": 6}
    )
    config.data.path = str(data / "folder" if config.data.name == "folder" else data)
    config.optimiser = "adamw"
    config.lr, config.warmup, config.decay, config.betas = (
        1e-3,
        0,
        "constant",
        (0.9, 0.99),
    )  # alike, so that few programs are compiled
    if (config.stage == "appearance" or config.loss.halvings) and not config.low_rank.rank:
        config.train_only = PARTS
    config.loss.reference_dropout = 0.1
    return config


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_every_config_makes_a_step(name, argument, data, stable_diffusion, one_device, tmp_path):
    config = get_config(name, argument)
    check_config(config)
    from_nothing = config.schedule.zero_terminal_snr
    train(shrink(config, data, "" if from_nothing else stable_diffusion), tmp_path, one_device)
    metrics = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert metrics["step"] == 1 and np.isfinite(metrics["loss"]) and metrics["flop_utilisation"] > 0


def test_every_variant_of_the_ablations_can_be_meant():
    for name, variant in VARIANTS.items():
        for stage in variant.stages:
            check_config(get_config("ablations", f"{name}:{stage}"))


def test_training_starts_from_stable_diffusion(data, stable_diffusion, micro, one_device, tmp_path):
    """The published recipe, with image-video joint training and latents from disk.

    Encoders begin as copies of the UNet, which stays as it is.
    """
    config = shrink(get_config("tiktok", "appearance"), data, stable_diffusion)
    config.train_only = default_config("appearance").train_only
    config.images.update({"name": "images", "path": str(data)})
    config.joint.images, config.lr, config.ema = 0.5, 0.0, 0.0
    config.data.latent_cache = str(tmp_path / "latents")
    train(config, tmp_path / "a", one_device)
    assert len(list((tmp_path / "latents").rglob("*.npy"))) == 4 + 3
    params, _ = read_parameters(tmp_path / "a")
    for name in ("encoder/conv_in/kernel", "decoder/up_blocks_1/attentions_0/transformer_blocks_0/attn1/to_q/kernel"):
        np.testing.assert_array_equal(params[f"appearance/{name}"], params[f"unet/{name}"])
    for name, twin in (
        ("encoder/conv_in/bias", "encoder/conv_in/bias"),
        ("mid_block/resnets_0/conv1/kernel", "decoder/mid_block/resnets_0/conv1/kernel"),
    ):
        np.testing.assert_array_equal(params[f"control/{name}"], params[f"unet/{twin}"])
    np.testing.assert_array_equal(
        params["unet/encoder/conv_in/kernel"], micro.params["unet"]["encoder"]["conv_in"]["kernel"]
    )
    assert not np.asarray(params["control/controlnet_mid_block/kernel"]).any(), "zero convolutions start at zero"


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", card24.NAMES)
def test_one_card_sees_what_the_config_it_is_made_of_sees(name, stage):
    """Read as train.py reads it."""
    small = parse_config(f"card24:{name}:{stage}", ["--config.lr", "2e-5"])
    check_config(small)
    config = parse_config(f"{name}:{stage}", ["--config.lr", "2e-5"])
    assert small.lr == 2e-5 and small.batch == 1 and small.accumulate == config.batch
    assert {"data", "loss", "schedule", "joint"} <= set(config)
    alike = ("data", "loss", "schedule", "joint", "betas", "warmup", "weight_decay", "clip", "train_only", "ema")
    for part in (*alike, "steps", "log_every", "save_every", "show_every"):
        assert small[part] == config[part]


def test_one_card_is_for_configs_of_full_size():
    with pytest.raises(InputError, match=r"one of tiktok, ted_talks, clips and a stage.*found 'puppets:temporal'"):
        get_config("card24", "puppets:temporal")
    with pytest.raises(InputError, match="one of appearance, temporal; found 'second'"):
        get_config("card24", "clips:second")


def test_one_person_is_for_two_sizes():
    with pytest.raises(InputError, match=r"one of puppets, sd15 and a stage.*found 'tiktok:appearance'"):
        get_config("personal", "tiktok:appearance")
    with pytest.raises(InputError, match="one of appearance, temporal; found 'second'"):
        get_config("personal", "sd15:second")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("moments_dtype", "float16", "config.moments_dtype: expected one of 'float32', 'bfloat16'"),
        ("accumulate_dtype", "int8", "config.accumulate_dtype: expected one of 'float32', 'bfloat16'"),
        ("ema_on", "disk", "config.ema_on: expected one of 'device', 'host'"),
        ("ema_every", 10, "config.ema_every: expected 1, or config.ema_on host, found 10"),
        ("batch", 0, "config.batch: expected a number of at least 1, found 0"),
        ("model", "sd3", "config.model: expected one of 'sd15'"),
        ("remat", "everything", "config.remat: expected one of 'none'"),
        ("data.name", "tictoc", "config.data.name: expected one of 'puppets'"),
        ("data.size", (60, 60), "config.data.size: expected rows and columns, multiples of 8"),
        ("loss.reference_dropout", 1.5, "config.loss.reference_dropout: expected a number from 0 to 1"),
        ("joint.images", 0.9, "config.images.name: expected one of"),
        ("joint.frames", 1.5, "config.joint.frames: expected at most"),
        ("schedule.kind", "quadratic", "config.schedule.kind"),
        ("learning_rate", 1e-4, "config.learning_rate is unknown"),
        ("schedule.zero_terminal_snr", True, "config.schedule.zero_terminal_snr: expected False with"),
        ("data.frames", 64, "config.data.frames: expected a number of frames from 1 to 24, its positions, found 64"),
        ("data.path", "", "config.data.path: expected the folder that python -m mafx.data.builders tiktok"),
    ],
)
def test_bad_values_are_refused_by_name(field, value, message, tmp_path, one_device):
    config = get_config("tiktok", "temporal")
    with config.unlocked():
        owner = config[field.split(".")[0]] if "." in field else config
        with owner.ignore_type():
            owner[field.split(".")[-1]] = value
    with pytest.raises(InputError, match=message.replace(".", r"\.")):
        train(config, tmp_path / "new", one_device)
    assert not (tmp_path / "new").exists()


def test_a_loss_has_one_weight_of_the_times():
    config = get_config("tiktok", "temporal")
    config.loss.min_snr_gamma = 5.0
    check_config(config)
    config.loss.as_v = True
    with pytest.raises(InputError, match=r"config.loss.min_snr_gamma: expected None with config.loss.as_v.*found 5.0"):
        check_config(config)


def test_unknown_stages_and_missing_data():
    with pytest.raises(InputError, match="one of appearance, temporal; found 'second'"):
        get_config("tiktok", "second")
    with pytest.raises(InputError, match="ablation 'no_pose' is unknown, expected one of full, embedding"):
        get_config("ablations", "no_pose:temporal")
    with pytest.raises(InputError, match="'set' has the appearance stage of 'full'; train that one"):
        get_config("ablations", "set:appearance")
    with pytest.raises(InputError, match=r"python -m mafx\.data\.builders tiktok"):
        train(get_config("tiktok", "appearance"), Path("nowhere"))
