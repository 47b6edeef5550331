import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from micro import example

import mafx
from mafx.errors import InputError

module = importlib.import_module("mafx.animate")  # the package's attribute of this name is the function


@pytest.fixture(scope="module")
def clip():
    return example((16, 16), 11)


def run(model, clip, frames=6, **changes):
    settings = {"steps": 2, "window": 4, "overlap": 1, "progress": False} | changes
    return mafx.animate(model, clip.reference, clip.motion[:frames], **settings)


@pytest.mark.parametrize("frames", [1, 3, 4, 6])
def test_any_number_of_frames(micro, clip, frames):
    out = run(micro, clip, frames)
    assert out.video.shape == (frames, 16, 16, 3) and out.video.dtype == np.float32
    assert out.latents.shape == (frames, 8, 8, 4) and out.latents.dtype == np.float32
    assert np.isfinite(out.latents).all() and out.video.min() >= 0 and out.video.max() <= 1


def test_seed_noise_and_repetition(micro, clip):
    a, b, c = run(micro, clip), run(micro, clip), run(micro, clip, seed=1)
    np.testing.assert_array_equal(a.latents, b.latents)
    assert np.abs(a.latents - c.latents).max() > 0.1
    noise = np.asarray(jax.random.normal(jax.random.key(1), (4, 8, 8, 4)))
    np.testing.assert_array_equal(run(micro, clip, seed=7, noise=noise).latents, c.latents)


def test_every_window_starts_from_the_same_noise(micro, clip):
    """With the same motion everywhere and no overlap, every window is the same video; not where every frame has its own noise."""
    still = dataclasses.replace(clip, motion=np.repeat(clip.motion[:1], 8, axis=0))
    out = run(micro, still, 8, overlap=0)
    np.testing.assert_allclose(out.latents[:4], out.latents[4:], atol=1e-5)
    assert np.flatnonzero(out.borders).tolist() == [3]
    own = run(micro, still, 8, overlap=0, shared_noise=False)
    assert np.abs(own.latents[:4] - own.latents[4:]).max() > 0.1


def test_guidance_at_one_and_below_skips_the_unconditional_half(micro, clip, monkeypatch):
    one = run(micro, clip, guidance_scale=1.0)
    np.testing.assert_array_equal(run(micro, clip, guidance_scale=0.0).latents, one.latents)
    calls, predict = [], module._predict
    monkeypatch.setattr(module, "_predict", lambda *args: (calls.append(args), predict(*args))[1])
    run(micro, clip, guidance_scale=1.0, steps=1)
    run(micro, clip, guidance_scale=2.0, steps=1)
    less, more = (predict.lower(*args).cost_analysis()["flops"] for args in (calls[0], calls[-1]))
    assert less < 0.8 * more
    monkeypatch.undo()
    nearly = run(micro, clip, guidance_scale=1.0001)
    np.testing.assert_allclose(nearly.latents, one.latents, atol=1e-3)


def test_compiled_once_whatever_the_frames_seeds_and_scales(micro, clip):
    run(micro, clip)
    before = module._predict._cache_size()
    run(micro, clip, 11, seed=3, guidance_scale=5.0, control_scale=0.5, steps=3, sampler="euler")
    assert module._predict._cache_size() == before


@pytest.mark.parametrize("settings", [
    {"sampler": "dpmpp_2m"}, {"sampler": "ddim", "eta": 1.0}, {"plan": "open", "weights": "tapered"}, {"fusion": "full"}, {"control_scale": 0.0},
])  # fmt: skip
def test_choices_are_felt(micro, clip, settings):
    plain, changed = run(micro, clip, steps=3), run(micro, clip, steps=3, **settings)
    assert np.isfinite(changed.latents).all()
    assert np.abs(plain.latents - changed.latents).max() > 1e-3


def test_motion_is_resized_to_the_reference(micro, clip):
    larger = np.repeat(np.repeat(clip.motion, 2, axis=1), 3, axis=2)
    out = run(micro, dataclasses.replace(clip, motion=larger))
    assert out.video.shape == (6, 16, 16, 3)


def test_callback_sees_every_step(micro, clip):
    seen = []
    out = run(micro, clip, steps=3, callback=lambda i, latents: seen.append((i, latents)))
    assert [i for i, _ in seen] == [0, 1, 2]
    np.testing.assert_array_equal(seen[-1][1], out.latents)


def test_bfloat16(micro, clip):
    half = dataclasses.replace(micro, params=jax.tree.map(lambda x: x.astype(jnp.bfloat16), micro.params))
    got, wanted = run(half, clip).latents, run(micro, clip).latents
    assert np.linalg.norm(got - wanted) / np.linalg.norm(wanted) < 0.1


@pytest.mark.parametrize(("change", "message"), [
    ({"reference": np.zeros((16, 16, 3))}, r"expected the reference as uint8 \[H, W, 3\], found float64"),
    ({"reference": np.zeros((16, 16), np.uint8)}, "expected the reference as uint8"),
    ({"reference": np.zeros((15, 16, 3), np.uint8)}, "divisible by 2, found 15x16; the nearest such size is 16x16"),
    ({"motion": np.zeros((0, 16, 16, 3), np.uint8)}, "the motion is empty"),
    ({"motion": np.zeros((16, 16, 3), np.uint8)}, "expected the motion as uint8"),
    ({"window": 25}, "a window of 1 to 24 frames, found 25"),
    ({"overlap": 4}, "less than the window"),
    ({"guidance_scale": -1.0}, "guidance scale of at least 0"),
    ({"guidance_scale": float("nan")}, "guidance scale of at least 0"),
    ({"steps": 0}, "between 1 and 1000 sampling steps"),
    ({"sampler": "plms"}, "'plms' is unknown"),
    ({"fusion": "up"}, "'up' is unknown"),
    ({"noise": np.zeros((16, 8, 8, 4), np.float32)}, r"expected noise of the shape \[4, 8, 8, 4\]"),
    ({"prompt": "a person"}, "no vocabulary"),
])  # fmt: skip
def test_bad_arguments(micro, clip, change, message):
    arguments = {"reference": clip.reference, "motion": clip.motion, "steps": 1, "window": 4, "overlap": 1, "progress": False} | change
    with pytest.raises(InputError, match=message):
        mafx.animate(micro, **arguments)
