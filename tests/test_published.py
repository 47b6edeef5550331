"""Equality with the published code on a very small model, whose weights and outputs lie in tests/published.

test_parity.py does the same on a larger set, which a clone does not have.
"""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest
from einops import rearrange
from safetensors.numpy import load_file

import mafx
from mafx.models.unet import Residuals
from mafx.pretrained.layout import load_pretrained

FOLDER = Path(__file__).parent / "published"
COMPONENT, PIPELINE, PICTURE = 1e-5, 5e-5, 1e-4  # the last is absolute, for pictures in [0, 1]
TIME = np.full(1, 481, np.int32)
CONTROL_SCALE = 0.5
DECODED_FRAMES = [3, 18]


@pytest.fixture(scope="module")
def model():
    return load_pretrained(FOLDER / "weights")


@pytest.fixture(scope="module")
def x():
    """All stored tensors; the order of their axes is that of PyTorch."""
    return load_file(FOLDER / "expected.safetensors")


@pytest.fixture
def check(parity):
    def check(name, got, expected, limit=COMPONENT, **options):
        parity.check(f"float32  small: {name}", got, expected, limit, **options)

    return check


@functools.partial(jax.jit, static_argnums=(0, 1))
def run(networks, method, params, *args):
    return networks.apply({"params": params}, *args, method=method)


def video(x):
    return rearrange(x, "b c f h w -> b f h w c")


def image(x):
    return rearrange(x, "b c h w -> b h w c")


def published_bank(x):
    """The bank as mafx nests it, with both halves of guidance: `(2, m, c)`."""
    names = {
        "mid_block": ["mid_block.attentions.0"],
        "up_blocks_1": ["up_blocks.1.attentions.0", "up_blocks.1.attentions.1"],
    }
    return {
        block: {f"attentions_{i}": x[f"bank.{name}.transformer_blocks.0"] for i, name in enumerate(layers)}
        for block, layers in names.items()
    }


def published_residuals(x):
    return Residuals(tuple(video(x[f"residuals.{i}"]) for i in range(4)), video(x["residuals.middle"]))


def compare_trees(check, name, got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for (path, leaf), want in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(expected), strict=True):
        check(f"{name} {jax.tree_util.keystr(path, simple=True, separator='.')}", leaf, want)


def test_text_states(model, x, check):
    np.testing.assert_array_equal(model.tokenizer(""), x["ids"][0])
    check("text states", run(model.networks, "encode_text", model.params, x["ids"].astype(np.int32)), x["text"])


def test_autoencoder(model, x, check):
    picture = x["reference"][None] / np.float32(127.5) - 1
    latents = run(model.networks, "encode_image", model.params, picture)
    check("reference latents", latents, image(x["reference_latents"]))
    decoded = run(model.networks, "decode_latents", model.params, video(x["latents"])[:, 0])
    check("decoded latents", decoded, image(x["decoded"]))


def test_bank(model, x, check):
    reference = np.repeat(image(x["reference_latents"]), 2, axis=0)
    bank = run(model.networks, "bank", model.params, reference, np.repeat(TIME, 2), x["text"])
    compare_trees(check, "bank", bank, published_bank(x))


def test_residuals(model, x, check):
    motion = x["motion"][None, :3] / np.float32(255)
    residuals = run(
        model.networks, "residuals", model.params, video(x["latents"]), TIME, x["text"][1:], motion, CONTROL_SCALE
    )
    compare_trees(check, "residuals", residuals, published_residuals(x))


def test_prediction_of_both_halves(model, x, check):
    bank = jax.tree.map(lambda tokens: tokens[1:], published_bank(x))
    negative, text = x["text"][:1], x["text"][1:]
    halves = run(
        model.networks,
        "predict_both",
        model.params,
        video(x["latents"]),
        TIME,
        text,
        negative,
        bank,
        published_residuals(x),
    )
    for name, got, want in zip(("unconditional", "conditional"), halves, video(x["prediction"]), strict=True):
        check(f"prediction, {name} half", got[0], want)


def test_whole_pipeline(model, x, check):
    """20 frames, which are padded to 32 and go through the UNet in three windows, in two guided steps."""
    steps = []
    result = mafx.animate(
        model,
        x["reference"],
        x["motion"],
        steps=2,
        guidance_scale=7.5,
        noise=video(x["noise"])[0],
        callback=lambda _, latents: steps.append(latents),
        progress=False,
    )
    frames = len(x["motion"])
    for i, (got, want) in enumerate(zip(steps, x["pipeline.latents"], strict=True)):
        check(f"pipeline, latents after step {i + 1}", got, video(want)[0, :frames], PIPELINE)
    check("pipeline, final latents", result.latents, video(x["pipeline.latents"][-1])[0, :frames], PIPELINE)
    decoded = result.video[DECODED_FRAMES]
    check("pipeline, decoded frames", decoded, video(x["pipeline.decoded"])[0], PICTURE, absolute=True)
