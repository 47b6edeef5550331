import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import relative_error
from micro import example

import mafx
from mafx.errors import InputError
from mafx.models.animator import Animator
from mafx.training.sharding import make_mesh


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
    """With one motion everywhere and no overlap, all windows are the same video, unless frames have their own noise."""
    still = dataclasses.replace(clip, motion=np.repeat(clip.motion[:1], 8, axis=0))
    out = run(micro, still, 8, overlap=0)
    np.testing.assert_allclose(out.latents[:4], out.latents[4:], atol=1e-5)
    assert np.flatnonzero(out.borders).tolist() == [3]
    own = run(micro, still, 8, overlap=0, shared_noise=False)
    assert np.abs(own.latents[:4] - own.latents[4:]).max() > 0.1


def step_flops(micro, **settings):
    """Floating-point operations of each kind of step."""
    settings = mafx.Settings(steps=2, window=4, overlap=1, **settings)
    costs = mafx.plan(micro, settings, (16, 16), 6).costs()
    return [cost.flops for cost in costs if cost.name.startswith("steps")]


def test_guidance_at_one_and_below_skips_the_unconditional_half(micro, clip):
    one = run(micro, clip, guidance_scale=1.0)
    np.testing.assert_array_equal(run(micro, clip, guidance_scale=0.0).latents, one.latents)
    (less,), (more,) = (step_flops(micro, guidance_scale=scale) for scale in (1.0, 2.0))
    assert less < 0.8 * more
    nearly = run(micro, clip, guidance_scale=1.0001)
    np.testing.assert_allclose(nearly.latents, one.latents, atol=1e-3)


@pytest.fixture
def traced(monkeypatch):
    """Grows when networks are traced: when something is about to be compiled."""
    calls, denoise = [], Animator.denoise

    def counted(self, *args, **kwargs):
        calls.append(1)
        return denoise(self, *args, **kwargs)

    monkeypatch.setattr(Animator, "denoise", counted)
    return calls


def test_compiled_once_whatever_the_frames_seeds_and_scales(micro, clip, traced):
    """A program serves any number of frames up to the next power of two times the window."""
    run(micro, clip, 5, reuse=1)
    before = len(traced)
    run(micro, clip, 8, seed=3, guidance_scale=5.0, control_scale=0.5, sampler="euler", progress=True)
    assert len(traced) == before
    run(micro, clip, 9)
    assert len(traced) > before


def test_what_is_compiled_from_shapes_is_all_that_runs(micro, clip, traced):
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), micro.params)
    settings = {"steps": 2, "window": 4, "overlap": 1, "reuse": 2, "guidance_scale": 3.0, "control_scale": 0.7}
    mafx.plan(dataclasses.replace(micro, params=shapes), mafx.Settings(**settings), (16, 16), 6).compile()
    before = len(traced)
    assert before
    run(micro, clip, **settings)
    assert len(traced) == before


def test_steps_one_by_one_or_in_one_call_are_the_same(micro, clip):
    seen = []
    watched = run(micro, clip, eta=0.5, callback=lambda i, x: seen.append(i))
    np.testing.assert_allclose(watched.latents, run(micro, clip, eta=0.5).latents, atol=1e-6)
    assert seen == [0, 1]


def test_windows_at_once_and_on_many_devices_change_nothing(micro, clip):
    """Three windows are two batches of two, the last one filled up."""
    alone, at_once = run(micro, clip), run(micro, clip, windows_at_once=2)
    spread = run(micro, clip, mesh=make_mesh({"data": 2}, jax.devices()[:2]))
    for other in (at_once, spread):
        assert relative_error(other.latents, alone.latents) < 1e-5
        assert relative_error(other.video, alone.video) < 1e-5


def test_guidance_in_an_interval_alone(micro, clip):
    """All times, and none: as with guidance, and as without; between them some steps are guided."""
    guided, plain = run(micro, clip), run(micro, clip, guidance_scale=1.0)
    np.testing.assert_array_equal(run(micro, clip, guidance_interval=(0, 1000)).latents, guided.latents)
    np.testing.assert_array_equal(run(micro, clip, guidance_interval=(0, 0)).latents, plain.latents)
    some = run(micro, clip, guidance_interval=(300, 600)).latents  # of the times 501 and 1
    assert min(np.abs(some - other.latents).max() for other in (guided, plain)) > 1e-3


def test_reuse_computes_the_first_level_alone(micro, clip):
    """The first step is whole, the second one shallow: cheaper, and another result, which is not far off."""
    whole, shallow = step_flops(micro, reuse=2)
    assert shallow < 0.9 * whole  # the smallest model has little below its first level
    usual, reused = run(micro, clip), run(micro, clip, reuse=2)
    assert 1e-4 < relative_error(reused.latents, usual.latents) < 0.5


@pytest.mark.parametrize(
    "settings",
    [
        {"sampler": "dpmpp_2m"},
        {"sampler": "ddim", "eta": 1.0},
        {"plan": "open", "weights": "tapered"},
        {"fusion": "full"},
        {"control_scale": 0.0},
    ],
)
def test_choices_are_felt(micro, clip, settings):
    plain, changed = run(micro, clip), run(micro, clip, **settings)
    assert np.isfinite(changed.latents).all()
    assert np.abs(plain.latents - changed.latents).max() > 1e-3


def test_motion_is_resized_to_the_reference(micro, clip):
    larger = np.repeat(np.repeat(clip.motion, 2, axis=1), 3, axis=2)
    out = run(micro, dataclasses.replace(clip, motion=larger))
    assert out.video.shape == (6, 16, 16, 3)


def test_callback_sees_every_step(micro, clip):
    seen = []
    out = run(micro, clip, callback=lambda i, latents: seen.append((i, latents)))
    assert [i for i, _ in seen] == [0, 1]
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
    ({"reuse": 0}, "reuse to be at least 1, found 0"),
    ({"window": 25}, "a window of 1 to 24 frames, found 25"),
    ({"overlap": 4}, "less than the window"),
    ({"guidance_scale": -1.0}, "guidance_scale to be at least 0"),
    ({"guidance_scale": float("nan")}, "guidance_scale to be finite"),
    ({"steps": 0}, "steps to be at least 1, found 0"),
    ({"steps": 1001}, "between 1 and 1000 sampling steps"),
    ({"stepz": 3}, "unknown settings: stepz"),
    ({"sampler": "plms"}, "sampler to be one of consistency, ddim, dpmpp_2m, euler, found 'plms'"),
    ({"fusion": "up"}, "fusion to be one of midup, full, found 'up'"),
    ({"noise": np.zeros((16, 8, 8, 4), np.float32)}, r"expected noise of the shape \[4, 8, 8, 4\]"),
    ({"prompt": "a person"}, "no vocabulary"),
])  # fmt: skip
def test_bad_arguments(micro, clip, change, message):
    arguments = {
        "reference": clip.reference,
        "motion": clip.motion,
        "steps": 1,
        "window": 4,
        "overlap": 1,
        "progress": False,
    } | change
    with pytest.raises(InputError, match=message):
        mafx.animate(micro, **arguments)


def test_a_watcher_sees_every_step_and_frame_and_changes_no_bit(micro, clip):
    seen, previews = [], []

    def watch(progress):
        seen.append((progress.part, progress.done, progress.total))
        if progress.decode:
            previews.append(progress.decode(2))

    watched, alone = run(micro, clip, watcher=watch), run(micro, clip, callback=lambda i, latents: None)
    np.testing.assert_array_equal(watched.video, alone.video)
    assert seen == [("steps", 1, 2), ("steps", 2, 2), *(("decoding", i, 6) for i in range(1, 6))]
    difference = np.abs(previews[-1] / 255 - watched.video[2]).max()  # the last step ends at the clean video
    assert difference < 1 / 255


@pytest.mark.parametrize("last", [("steps", 1), ("decoding", 2)])
def test_what_a_watcher_raises_ends_the_animation(micro, clip, last):
    seen = []

    def stop(progress):
        seen.append((progress.part, progress.done))
        if seen[-1] == last:
            raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        run(micro, clip, watcher=stop)
    assert seen[-1] == last
