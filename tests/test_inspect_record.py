import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import relative_error
from flax import linen as nn
from jax.extend.core import jaxprs_in_params
from micro import example

import mafx
from mafx import sampling
from mafx.errors import InputError
from mafx.inspect.record import Places, frame_weights, mixed_weights, observe, token_grid, token_of
from mafx.inspect.recording import point_at, record
from mafx.model import abstract_model
from mafx.models.attention import Attention
from mafx.program import plan
from mafx.sampling import Inputs

SETTINGS = {"steps": 2, "window": 4, "overlap": 1, "guidance_scale": 2.0}
FRAME, STEP = 2, 1


@pytest.fixture(scope="module")
def clip():
    return example((16, 16), 6)


def make_recording(model, clip, frames, **changes):
    settings = mafx.Settings(**SETTINGS | changes)
    return record(plan(model, settings, (16, 16), frames), clip.reference, clip.motion[:frames], progress=False)


@pytest.fixture(scope="module")
def recording(micro, clip):
    return make_recording(micro, clip, 3)


def grid_places(h, w, frame):
    """The middle of every token of a frame."""
    rows, columns = np.indices((h, w)).reshape(2, -1)
    return Places(np.full(h * w, frame), np.stack([(rows + 0.5) / h, (columns + 0.5) / w], 1))


@pytest.fixture(scope="module")
def observed(recording):
    return recording.observe(STEP, recording.window(FRAME), grid_places(8, 8, FRAME))


@pytest.fixture(scope="module")
def inner(recording):
    """What every attention of the denoiser is given and gives in the same step, and its parameters, by its path."""
    program, window = recording.program, recording.window(FRAME)
    inputs = recording.inputs._replace(motion=recording.inputs.motion[window])
    seen = {}

    def keep(function, args, kwargs, context):
        out = function(*args, **kwargs)
        if isinstance(context.module, Attention) and context.method_name == "__call__":
            seen[context.module.path] = (args[0], kwargs.get("bank"), out)  # the half with the reference is last
        return out

    @jax.jit
    def run(params, x, time, bank):
        with nn.intercept_methods(keep):
            sampling.predict(program.kinds[STEP], params, x, None, inputs, jnp.arange(len(x))[None], time, bank)
        return {"/".join(path): x for path, x in seen.items()}

    params = {name: program.model.params[name] for name in ("unet", "control")}
    time = program.table.times[STEP].astype(np.int32)
    banks = sampling.write_banks(
        program.networks,
        {"appearance": program.model.params["appearance"]},
        recording.reference_latents,
        time[None],
        inputs.text,
    )
    values = run(params, recording.latents[STEP, window], time, jax.tree.map(lambda x: x[0], banks))
    return {path: (*x, functools.reduce(dict.get, path.split("/"), params)) for path, x in values.items()}


def project(x, kernel, heads):
    y = np.asarray(x, np.float64) @ np.asarray(kernel["kernel"], np.float64)
    return y.reshape(*y.shape[:-1], heads, -1)


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


@pytest.mark.parametrize("layer", ["mid_block/attentions_0", "up_blocks_1/attentions_0", "up_blocks_1/attentions_1"])
def test_mixed_weights_follow_from_the_layer_s_parameters_and_make_its_output(recording, observed, inner, layer):
    x, bank, out, params = inner[f"unet/decoder/{layer}/transformer_blocks_0/attn1"]
    x, bank = np.asarray(x)[0, FRAME], np.asarray(bank)[0]
    heads = recording.program.model.config.unet.heads
    q, keys = project(x, params["to_q"], heads), project(np.concatenate([x, bank]), params["to_k"], heads)
    weights = softmax(np.einsum("nad,kad->nak", q, keys) / np.sqrt(q.shape[-1]))

    found = observed.mixed[layer]
    grid = token_grid(len(x), (8, 8))
    tokens = token_of(grid_places(8, 8, FRAME).points, grid)
    got = np.concatenate([found.own, found.reference], 1)
    np.testing.assert_allclose(got, weights.mean(1)[tokens], atol=1e-5)
    np.testing.assert_allclose(got.sum(1), 1, atol=1e-5)

    single = jax.vmap(mixed_weights, (0, None, None))
    ours = np.concatenate(single(*(jnp.asarray(y, jnp.float32) for y in (q, keys[: len(x)], keys[len(x) :]))), -1)
    np.testing.assert_allclose(ours, weights, atol=1e-5)
    values = project(np.concatenate([x, bank]), params["to_v"], heads)
    mixed = np.einsum("nak,kad->nad", ours, values).reshape(len(x), -1)
    made = mixed @ np.asarray(params["to_out"]["kernel"]) + np.asarray(params["to_out"]["bias"])
    assert relative_error(made, np.asarray(out)[0, FRAME]) < 1e-5


def test_frame_weights_follow_from_the_layer_s_parameters_and_make_its_output(recording, observed, inner):
    paths = [path for path in inner if "motion_modules" in path]
    assert len(paths) == len(observed.temporal) == 12  # six modules of two attentions
    for path in paths:
        x, _, out, params = inner[path]
        heads = recording.program.model.config.unet.temporal.heads
        x = np.asarray(x) + np.asarray(params["pe"])[None, : x.shape[1], None]
        q, k, v = (project(x, params[name], heads) for name in ("to_q", "to_k", "to_v"))
        weights = softmax(np.einsum("bfnad,bgnad->bnafg", q, k) / np.sqrt(q.shape[-1]))
        ours = np.asarray(frame_weights(jnp.asarray(q, jnp.float32), jnp.asarray(k, jnp.float32)))
        np.testing.assert_allclose(ours, weights, atol=1e-5)
        _, _, *layer, _, attention = path.split("/")
        got = observed.temporal["/".join([*layer, attention])]
        np.testing.assert_allclose(got, weights.mean((0, 1, 2)), atol=1e-5)
        np.testing.assert_allclose(got.sum(1), 1, atol=1e-5)
        mixed = np.einsum("bnafg,bgnad->bfnad", ours, v).reshape(x.shape)
        made = mixed @ np.asarray(params["to_out"]["kernel"]) + np.asarray(params["to_out"]["bias"])
        assert relative_error(made, out) < 1e-5


def test_a_place_is_seen_as_well_alone(recording, observed):
    places = Places([FRAME], [(0.4, 0.9)])
    alone = recording.observe(STEP, recording.window(FRAME), places).mixed
    for layer, x in observed.mixed.items():
        (token,) = token_of(np.array([[0.4, 0.9]]), (8, 8))
        np.testing.assert_allclose(alone[layer].reference[0], x.reference[token], atol=1e-6)


@pytest.mark.parametrize("frames", [3, 6])
def test_the_video_is_the_same_without_a_recording(micro, clip, frames):
    plain = mafx.animate(micro, clip.reference, clip.motion[:frames], progress=False, **SETTINGS)
    recorded = make_recording(micro, clip, frames)
    np.testing.assert_array_equal(recorded.animation.video, plain.video)
    np.testing.assert_array_equal(recorded.animation.latents, plain.latents)
    np.testing.assert_array_equal(recorded.animation.borders, plain.borders)
    assert recorded.frames == frames and recorded.latents.shape == (2, 4 * -(-frames // 4), 8, 8, 4)


def test_a_step_that_is_computed_again_leads_to_the_latents_that_followed(recording):
    """Three frames in one window: DDIM ends at the clean latents, and goes from there before."""
    window, places = recording.window(0), Places([0], [(0.5, 0.5)])
    table = recording.program.table
    for step in range(2):
        prediction = recording.observe(step, window, places).prediction
        clean = recording.clean(step, window, prediction)
        eps = (recording.latents[step] - table.alpha[step] * clean) / table.sigma[step]
        after = table.clean[step] * clean + table.noise[step] * eps
        expected = recording.latents[1] if step == 0 else recording.animation.latents
        assert relative_error(after[: len(expected)], expected) < 1e-5


def test_residuals_are_scaled_and_none_without_control(recording):
    window, places = recording.window(0), Places([0], [(0.5, 0.5)])
    one, half, none = (recording.observe(0, window, places, control_scale=x).residuals for x in (1.0, 0.5, 0.0))
    assert list(one) == ["00 8x8", "01 8x8", "02 4x4", "03 4x4", "middle 4x4"]
    for name, x in one.items():
        assert x.added > 0 and x.base > 0
        assert half[name].added == pytest.approx(x.added / 2, rel=1e-5) and none[name].added == 0
        assert half[name].base == pytest.approx(x.base, rel=1e-5)  # it is what they are added to, not the sum


def test_windows_are_those_in_whose_middle_a_frame_is(micro, clip):
    recording = make_recording(micro, clip, 6)
    assert recording.window(1).tolist() == [0, 1, 2, 3]
    for frame in range(6):
        assert frame in recording.window(frame)


def test_what_is_not_there_is_refused(micro, clip, recording):
    window = recording.window(0)
    with pytest.raises(InputError, match="a step from 0 to 1, found 2"):
        recording.observe(2, window, Places([0], [(0.5, 0.5)]))
    with pytest.raises(InputError, match="inside of the picture"):
        recording.observe(0, window, Places([0], [(0.5, 1.0)]))
    with pytest.raises(InputError, match="rows 0 to 15 and columns 0 to 15, found 3,16"):
        point_at((3, 16), (16, 16))
    with pytest.raises(InputError, match="a frame from 0 to 2, found 3"):
        recording.window(3)
    with pytest.raises(InputError, match="found a reuse of 2"):
        make_recording(micro, clip, 3, reuse=2)
    config = dataclasses.replace(micro.config, appearance="embedding")
    with pytest.raises(InputError, match="comes as embedding"):
        make_recording(dataclasses.replace(micro, config=config), clip, 3)


def test_tokens_of_points():
    assert token_grid(16, (8, 8)) == (4, 4) and token_grid(6, (5, 3)) == (3, 2)
    assert token_of(np.array([[0.0, 0.0], [0.99, 0.99], [0.5, 0.3]]), (4, 2)).tolist() == [0, 7, 4]


MEBIBYTE = 2**20


def large_arrays(jaxpr, least):
    """Shapes of what a program computes, inner programs included, as far as they take so many bytes."""
    for equation in jaxpr.eqns:
        for x in equation.outvars:
            if x.aval.size * x.aval.dtype.itemsize >= least:
                yield f"{equation.primitive} {x.aval}"
        for inner_jaxpr in jaxprs_in_params(equation.params):
            yield from large_arrays(inner_jaxpr, least)


def test_at_full_size_nothing_large_is_kept():
    """At 512x512 all weights of a layer would take 16 GiB; those of a place add nothing above 40 MiB."""
    program = plan(abstract_model(mafx.models.animator.SIZES["sd15"], "bfloat16"), size=(512, 512))
    (steps,) = (part for part in program.parts() if part.name == "steps")
    kind, params, _, inputs, _, _, banks, _, _ = steps.arguments
    inputs = Inputs(*inputs)
    bank = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), banks)
    places = Places(np.zeros(1, np.int32), np.zeros((1, 2), np.float32))
    x = jax.ShapeDtypeStruct((16, 64, 64, 4), np.float32)
    time = jax.ShapeDtypeStruct((), np.int32)

    def plain(params, x, inputs, time, bank):
        return sampling.predict(kind, params, x, None, inputs, jnp.arange(16)[None], time, bank)

    without = jax.make_jaxpr(plain)(params, x, inputs, time, bank)
    traced = observe.trace(kind, params, x, inputs, time, bank, places)
    assert sorted(large_arrays(traced.jaxpr.jaxpr, 40 * MEBIBYTE)) == sorted(large_arrays(without.jaxpr, 40 * MEBIBYTE))
    seen = observe.eval_shape(kind, params, x, inputs, time, bank, places)
    assert sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(seen)) < 2 * MEBIBYTE
    assert len(seen.mixed) == 10 and len(seen.temporal) == 40 and len(seen.residuals) == 13
    assert seen.mixed["up_blocks_3/attentions_2"].reference.shape == (1, 4096)
