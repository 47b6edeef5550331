"""Equality with the published code, network by network and as a whole.

`pytest tests/test_parity.py` ends with the table of errors.
"""

import dataclasses
import functools
import json

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SHARED
from einops import rearrange
from safetensors.numpy import load_file

import mafx
from mafx.diffusion.samplers import guide
from mafx.diffusion.windows import fusion_weights, window_plan
from mafx.models.animator import SIZES, parameter_shapes
from mafx.models.autoencoder import Autoencoder
from mafx.models.control import ControlNet, MotionEmbedding
from mafx.models.layers import timestep_embedding
from mafx.models.temporal import TemporalTransformer
from mafx.models.unet import Residuals
from mafx.pretrained.layout import PARTS, load_pretrained
from mafx.pretrained.names import published_name, published_shape

COMPONENT, FULL, PIPELINE, VIDEO, BF16 = 1e-5, 2e-5, 5e-5, 1e-3, 3e-2


def video(x):
    return rearrange(x, "b c f h w -> b f h w c")


def image(x):
    return rearrange(x, "b c h w -> b h w c")


@pytest.fixture(scope="session")
def expected(published):
    return functools.cache(lambda name: load_file(published / "expected" / f"{name}.safetensors"))


@functools.partial(jax.jit, static_argnums=(0, 1))
def run(networks, method, params, *args):
    return networks.apply({"params": params}, *args, method=method)


def apply(model, method, *args):
    cast = [jnp.asarray(x, model.dtype) if np.asarray(x).dtype == np.float32 else x for x in args]
    return np.asarray(run(model.networks, method, model.params, *cast)).astype(np.float32)


def limit_of(model, limit):
    return limit if model.dtype == jnp.float32 else BF16


@pytest.fixture(scope="session", params=["float32", "bfloat16", "float16"])
def model(request, published):
    return load_pretrained(published, request.param)


def label(model, name):
    return f"{model.dtype.name:8} {name}"


def test_tokenizer(published, published_model, expected):
    prompts = json.loads((published / "expected" / "prompts.json").read_text())
    for key, ids in (("prompts", "input_ids"), ("tokenizer_only", "tokenizer_only_ids")):
        for prompt, wanted in zip(prompts[key], expected("text")[ids], strict=True):
            np.testing.assert_array_equal(published_model.tokenizer(prompt), wanted)


def test_text(model, expected, parity):
    x = expected("text")
    got = apply(model, "encode_text", x["input_ids"])
    parity.check(label(model, "text states"), got, x["last_hidden_state"], limit_of(model, COMPONENT))


@pytest.mark.parametrize("size", ["", "alt."])
def test_autoencoder(model, expected, parity, size):
    x = {name: expected("vae")[size + name] for name in ("image", "moments", "mean", "logvar", "latent", "decoded")}
    networks, params = Autoencoder(model.config.autoencoder), {"params": model.params["autoencoder"]}
    mean, logvar = networks.apply(params, jnp.asarray(image(x["image"]), model.dtype), method="encode")
    check = functools.partial(parity.check, limit=limit_of(model, COMPONENT))
    check(label(model, f"vae {size}mean"), mean, image(x["mean"]))
    check(label(model, f"vae {size}logvar"), logvar, image(x["logvar"]))
    check(label(model, f"vae {size}moments"), np.concatenate([mean, logvar], -1), image(x["moments"]))
    decoded = networks.apply(params, jnp.asarray(image(x["latent"]), model.dtype), method="decode")
    check(label(model, f"vae {size}decoded"), decoded, image(x["decoded"]))


@pytest.mark.parametrize("case", "abcd")
def test_motion_module(model, expected, parity, case):
    x = expected("motion_module")
    half, block, module = (
        ("encoder", "down_blocks_1", "motion_modules_0")
        if case in "ad"
        else ("decoder", "up_blocks_3", "motion_modules_2")
    )
    params = {"params": model.params["unet"][half][block][module]}
    got = TemporalTransformer(model.config.unet.temporal).apply(
        params, jnp.asarray(video(x[f"{case}.input"]), model.dtype)
    )
    parity.check(label(model, f"motion module {case}"), got, video(x[f"{case}.output"]), limit_of(model, COMPONENT))


def test_motion_module_takes_no_more_frames_than_positions(published_model):
    params = {"params": published_model.params["unet"]["encoder"]["down_blocks_1"]["motion_modules_0"]}
    with pytest.raises(ValueError, match="knows 24 positions, 25 frames"):
        TemporalTransformer(published_model.config.unet.temporal).apply(params, jnp.zeros((1, 25, 2, 2, 32)))


def unet_inputs(x, case):
    sample = video(x[f"{case}.sample"])
    return sample, np.repeat(x[f"{case}.timestep"].astype(np.int32), len(sample)), x[f"{case}.encoder_hidden_states"]


@pytest.mark.parametrize("case", ["c0", "c1", "c2", "c3"])
def test_unet_plain(model, expected, parity, case):
    if model.dtype != jnp.float32 and case != "c0":
        pytest.skip("one shape in bfloat16 is enough")
    x = expected("unet_plain")
    got = apply(model, "predict", *unet_inputs(x, case), {}, None)
    parity.check(label(model, f"unet plain {case}"), got, video(x[f"{case}.output"]), limit_of(model, COMPONENT))


def test_unet_without_motion(published_model, expected, parity):
    x = expected("unet_plain")
    config = dataclasses.replace(
        published_model.config, unet=dataclasses.replace(published_model.config.unet, temporal=None)
    )
    keep = {
        p: v
        for p, v in flax.traverse_util.flatten_dict(published_model.params).items()
        if not any("motion" in name for name in p)
    }
    still = dataclasses.replace(published_model, config=config, params=flax.traverse_util.unflatten_dict(keep))
    got = apply(still, "predict", *unet_inputs(x, "c0"), {}, None)
    parity.check(label(still, "unet plain c0, motion off"), got, video(x["c0.output_motion_off"]), COMPONENT)


def test_unet_blocks(published_model, expected, parity):
    """The inside of the UNet, so that an error is found where it begins."""
    x = expected("unet_plain")

    @jax.jit
    def inside(params, *args):
        captured = published_model.networks.apply(
            {"params": params}, *args, {}, None, method="predict", capture_intermediates=True
        )
        return captured[1]["intermediates"]["unet"]

    captured = inside(published_model.params, *unet_inputs(x, "c0"))
    names = [name.removeprefix("c0.block.") for name in x if name.startswith("c0.block.")]
    assert len(names) == 18
    for name in names:
        if name == "time_proj":
            got = timestep_embedding(jnp.asarray(x["c0.timestep"]), 32)
        else:
            half = "encoder" if name.startswith(("conv_in", "time", "down")) else "decoder"
            node = captured[half]
            for part in [f"{a}_{b}" if b else a for a, b in _numbered(name)]:
                node = node[part]
            got = node["__call__"][0]
            got = got[0] if isinstance(got, tuple) else got
        wanted = x[f"c0.block.{name}"]
        parity.check(f"float32  unet block {name}", got, video(wanted) if wanted.ndim == 5 else wanted, COMPONENT)


def _numbered(name):
    parts = name.split(".")
    i = 0
    while i < len(parts):
        has_number = i + 1 < len(parts) and parts[i + 1].isdigit()
        yield parts[i], parts[i + 1] if has_number else None
        i += 1 + has_number


@pytest.mark.parametrize("size", ["", "alt."])
def test_appearance(model, expected, parity, size):
    if model.dtype != jnp.float32 and size:
        pytest.skip("one shape in bfloat16 is enough")
    x = {
        name.removeprefix(size): value
        for name, value in expected("appearance").items()
        if name.startswith("alt.") == bool(size)
    }
    twice = np.repeat(image(x["ref_latents"]), 2, axis=0)
    t, text = np.repeat(x["timestep"].astype(np.int32), 2), jnp.asarray(x["encoder_hidden_states"], model.dtype)
    bank = run(model.networks, "bank", model.params, jnp.asarray(twice, model.dtype), t, text)
    wanted = published_bank(x)
    assert jax.tree.structure(bank) == jax.tree.structure(wanted)
    for (path, got), want in zip(jax.tree.leaves_with_path(bank), jax.tree.leaves(wanted), strict=True):
        name = ".".join(str(key.key) for key in path)
        parity.check(label(model, f"bank {size}{name}"), got, want, limit_of(model, COMPONENT))


def published_bank(x):
    bank = {}
    for name, value in x.items():
        if name.startswith("bank."):
            (block, i), (kind, j) = [
                pair for pair in _numbered(name.removeprefix("bank.")) if pair[0] != "transformer_blocks"
            ]
            bank.setdefault(f"{block}_{i}" if i else block, {})[f"{kind}_{j}"] = value
    return bank


@pytest.mark.parametrize(("case", "scale"), [("scale1", 1.0), ("scale0_5", 0.5), ("alt.scale1", 1.0)])
def test_controlnet(model, expected, parity, case, scale):
    if model.dtype != jnp.float32 and case != "scale1":
        pytest.skip("one case in bfloat16 is enough")
    alt = "alt." if case.startswith("alt.") else ""
    x = expected("controlnet")
    sample, pose = (rearrange(x[alt + name], "f c h w -> 1 f h w c") for name in ("sample", "controlnet_cond"))
    inputs = [jnp.asarray(y, model.dtype) for y in (x[f"{alt}encoder_hidden_states"][:1], pose)]
    got = run(
        model.networks,
        "residuals",
        model.params,
        jnp.asarray(sample, model.dtype),
        x[f"{alt}timestep"].astype(np.int32),
        *inputs,
        scale,
    )
    for i, residual in enumerate(got.skips):
        name = f"{case}.down.{i}"
        parity.check(label(model, f"controlnet {name}"), residual[0], image(x[name]), limit_of(model, COMPONENT))
    parity.check(
        label(model, f"controlnet {case}.mid"), got.middle[0], image(x[f"{case}.mid"]), limit_of(model, COMPONENT)
    )


def test_pose_embedding(model, expected, parity):
    x = expected("controlnet")
    params = {"params": model.params["control"]["controlnet_cond_embedding"]}
    embedding = MotionEmbedding(model.config.motion_widths, model.config.unet.widths[0])
    got = embedding.apply(params, jnp.asarray(rearrange(x["controlnet_cond"], "f c h w -> 1 f h w c"), model.dtype))
    parity.check(
        label(model, "controlnet pose embedding"), got[0], image(x["cond_embedding"]), limit_of(model, COMPONENT)
    )
    assert ControlNet(model.config.unet).motion_widths == (
        16,
        32,
        96,
        256,
    )  # the published default, where a config is silent


@pytest.mark.parametrize("missing", ["", "_no_bank", "_no_control"])
def test_unet_full(model, expected, parity, missing):
    if model.dtype != jnp.float32 and missing:
        pytest.skip("one case in bfloat16 is enough")
    x = expected("unet_full")

    def cast(tree):
        return jax.tree.map(lambda y: jnp.asarray(y, model.dtype), tree)

    bank = {} if missing == "_no_bank" else cast(jax.tree.map(lambda y: y[1:], published_bank(x)))
    residuals = None
    if missing != "_no_control":
        residuals = cast(Residuals(tuple(video(x[f"down.{i}"]) for i in range(12)), video(x["mid"])))
    text, t = cast(x["encoder_hidden_states"]), x["timestep"].astype(np.int32)
    inputs = cast(video(x["latents"])), t, text[1:], text[:1], bank, residuals
    halves = run(model.networks, "predict_both", model.params, *inputs)
    wanted = video(x[f"noise_pred{missing}"])
    for name, got, want in zip(("unconditional", "conditional"), halves, wanted, strict=True):
        parity.check(label(model, f"unet full{missing} {name}"), got[0], want, limit_of(model, FULL))


CASES = ["case_a", "case_b", "case_c"]


@pytest.fixture(scope="session", params=CASES)
def case(request, published, expected):
    settings = json.loads((published / "expected" / "pipeline.json").read_text())[request.param]
    x = {
        name.removeprefix(f"{request.param}."): value
        for name, value in expected("pipeline").items()
        if name.startswith(request.param)
    }
    x.setdefault("pose", expected("pipeline")["case_a.pose"][:16])
    return request.param, settings, x


@pytest.mark.parametrize("case", ["case_b"], indirect=True)  # of three windows
def test_pipeline_first_step(published_model, case, parity):
    """Both halves of the first step, fused over windows: the loop of `animate` written out with plain parts."""
    name, settings, x = case
    model = published_model
    text = [apply(model, "encode_text", model.tokenizer(settings[key])[None]) for key in ("negative_prompt", "prompt")]
    parity.check(f"float32  {name} text", np.concatenate(text), x["text_embeddings"], COMPONENT)
    reference = apply(model, "encode_image", (x["source_image"][None] / 127.5 - 1).astype(np.float32))
    parity.check(f"float32  {name} reference latents", reference, image(x["ref_latents"]), COMPONENT)

    frames = settings["frames_padded"]
    noisy = np.resize(video(x["noise"])[0], (frames, *video(x["noise"]).shape[2:]))
    motion = np.concatenate([x["pose"], np.repeat(x["pose"][-1:], frames - len(x["pose"]), axis=0)]) / np.float32(255)
    windows = window_plan(frames)
    np.testing.assert_array_equal(windows, settings["windows"])
    t = x["timesteps"][:1].astype(np.int32)
    bank = run(model.networks, "bank", model.params, reference, t, text[1])
    fused = np.zeros((2, *noisy.shape), np.float32)
    for indices, weights in zip(windows, fusion_weights(windows, 4), strict=True):
        scale = settings["controlnet_conditioning_scale"]
        residuals = run(
            model.networks, "residuals", model.params, noisy[None, indices], t, text[1], motion[None, indices], scale
        )
        negative = None if settings["prompt"] == settings["negative_prompt"] else text[0]
        halves = run(
            model.networks, "predict_both", model.params, noisy[None, indices], t, text[1], negative, bank, residuals
        )
        fused[:, indices] += weights[:, None, None, None] * np.concatenate(halves)
    parity.check(f"float32  {name} fused first prediction", fused, video(x["first.noise_pred_fused"]), PIPELINE)
    guided = guide(fused[:1], fused[1:], settings["guidance_scale"])
    parity.check(f"float32  {name} guided first prediction", guided, video(x["first.noise_pred_guided"]), PIPELINE)


def test_pipeline(model, case, parity):
    name, settings, x = case
    if model.dtype != jnp.float32 and name != "case_a":
        pytest.skip("one case in bfloat16 is enough")
    steps, frames = [], settings["frames_given"]
    out = mafx.animate(
        model,
        x["source_image"],
        x["pose"],
        steps=settings["steps"],
        guidance_scale=settings["guidance_scale"],
        prompt=settings["prompt"],
        negative_prompt=settings["negative_prompt"],
        control_scale=settings["controlnet_conditioning_scale"],
        noise=video(x["noise"])[0],
        callback=lambda i, latents: steps.append(latents),
        progress=False,
    )
    for i, (got, want) in enumerate(zip(steps, x["latents_steps"], strict=True)):
        parity.check(
            label(model, f"{name} latents after step {i + 1}"), got, video(want)[0, :frames], limit_of(model, PIPELINE)
        )
    parity.check(
        label(model, f"{name} final latents"),
        out.latents,
        video(x["final_latents"])[0, :frames],
        limit_of(model, PIPELINE),
    )
    if model.dtype == jnp.float32:
        parity.check(
            label(model, f"{name} video"), out.video[x["video_frames"]], video(x["video"])[0], VIDEO, absolute=True
        )


def test_old_autoencoder_names(published, published_model, tmp_path):
    """A file written under diffusers' old attention names is the same autoencoder."""
    for path in published.rglob("*"):
        if path.is_file() and "expected" not in path.parts and "extra" not in path.parts:
            link = tmp_path / path.relative_to(published)
            link.parent.mkdir(parents=True, exist_ok=True)
            name = path.relative_to(published)
            old = published / "extra" / "sd-vae-ft-mse-deprecated-keys" / name.name
            link.symlink_to(old if name.parts[0] == "sd-vae-ft-mse" else path)
    renamed = load_pretrained(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, renamed.params["autoencoder"], published_model.params["autoencoder"])


def test_shapes_of_the_full_size():
    """Tensor for tensor and number for number, without the memory."""
    path = SHARED / "fixtures" / "published_shapes.json"
    if not path.is_file():
        pytest.skip("the list of published shapes (../shared/fixtures/published_shapes.json) is not here")
    shapes = flax.traverse_util.flatten_dict(parameter_shapes(SIZES["sd15"]))
    wanted = json.loads(path.read_text())["tensors"]
    assert {part.folder for part in PARTS} == set(wanted)
    for part in PARTS:
        got = {published_name(p): published_shape(p, leaf.shape) for p, leaf in shapes.items() if part.holds(p)}
        tensors = {name.removeprefix("module."): tuple(shape) for name, shape in wanted[part.folder].items()}
        tensors.pop("text_model.embeddings.position_ids", None)
        assert got == tensors, part.folder
    roots = ("unet", "appearance", "control", "autoencoder", "text")
    count = {root: sum(int(np.prod(leaf.shape)) for p, leaf in shapes.items() if p[0] == root) for root in roots}
    assert count == {
        "unet": 1277503364,
        "appearance": 857066560,
        "control": 361279120,
        "autoencoder": 83653863,
        "text": 123060480,
    }
