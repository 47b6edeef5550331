"""Animate: parameters, a picture and a motion in, frames out. What happens, in order; the loop over steps and windows is in `sampling`."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm.auto import tqdm

from mafx import sampling
from mafx.diffusion.samplers import SamplerTable, make_sampler
from mafx.diffusion.windows import fusion_weights, pad_frames, window_borders, window_plan
from mafx.errors import InputError
from mafx.media import Size, resize
from mafx.model import Model
from mafx.models.animator import Animator
from mafx.sampling import Inputs, SamplerState, StepKind, WindowBatches

Call = Callable  # (program, *args) -> its results, or their shapes
BANKS_AT_ONCE = 8  # steps whose reference features are computed together and held: at 512x512 in bfloat16, 14 MiB each


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to animate. The defaults are MagicAnimate's (its demo/animate.py and configs/prompts/animation.yaml) and reproduce it.

    Attributes:
      steps: of the sampler, each one evaluation of the networks per window.
      guidance_scale: of the reference against none; at 1 and below only the conditional half is computed.
      guidance_interval: diffusion times, from and to below, of the steps that are guided (*Applying Guidance in a Limited Interval*, arXiv
        2404.07724); the others cost half.
      reuse: so many steps in a row use what enters the last level of the networks at the first of them (*DeepCache*, arXiv 2312.00858); 1 is none.
      seed: of the starting noise.
      shared_noise: every `window` frames start from the same noise, as published; else every frame has its own.
      prompt, negative_prompt: texts of the two halves; equal ones share the encoder.
      control_scale: factor on the pose ControlNet's residuals.
      window, overlap: frames that go through the networks together, and how many of them two neighbours share.
      windows_at_once: of them on each device; more need more memory, and keep a large device busier.
      sampler, eta: see `diffusion.samplers.make_sampler`.
      plan, weights: see `diffusion.windows`.
      fusion: "midup" or "full", where the reference is mixed in; None is as the model was trained.
    """

    steps: int = 25
    guidance_scale: float = 7.5
    guidance_interval: tuple[int, int] = (0, 1000)
    reuse: int = 1
    seed: int = 0
    shared_noise: bool = True
    prompt: str = ""
    negative_prompt: str = ""
    control_scale: float = 1.0
    window: int = 16
    overlap: int = 4
    windows_at_once: int = 1
    sampler: str = "ddim"
    eta: float = 0.0
    plan: str = "closed"
    weights: str = "uniform"
    fusion: str | None = None


@dataclasses.dataclass(frozen=True)
class Animation:
    """`video`: float32 `f H W 3` in [0, 1]; `latents`: float32 `f h w c`, as the diffusion left them; `borders`: see `diffusion.windows`, `f - 1`."""

    video: np.ndarray
    latents: np.ndarray
    borders: np.ndarray


def animate(
    model: Model,
    reference: np.ndarray,
    motion: np.ndarray,
    *,
    noise: np.ndarray | None = None,
    mesh: Mesh | None = None,
    progress: bool = True,
    callback: Callable[[int, np.ndarray], None] | None = None,
    **settings,
) -> Animation:
    """Animate a reference image by a motion sequence.

    Args:
      model: from `load_pretrained`; the networks compute in the dtype of its parameters, the diffusion in float32.
      reference: uint8 `H W 3`, both sides divisible by 8. Its size is the size of the video.
      motion: uint8 `f H W 3`, DensePose renders, at least one; resized to the reference's size where they differ.
      noise: float32 `window h w c`, instead of the seed.
      mesh: the windows of a long video are spread over its devices, each of which holds all parameters; by default there is one device.
      progress: show a bar.
      callback: called after every step with its index and the latents, float32 `f h w c`.
      settings: fields of `Settings`.

    Raises: InputError for arguments that do not fit; nothing has been computed then.
    """
    return _animate(
        model,
        reference,
        motion,
        Settings(**settings),
        mesh,
        lambda program, *args: program(*args),
        noise,
        progress,
        callback,
    )


def compile_ahead(
    model: Model, size: Size, frames: int = 16, mesh: Mesh | None = None, **settings
) -> dict[str, list[jax.stages.Compiled]]:
    """Compile what `animate` runs for `frames` frames of `size` (rows, columns), for the cache of `mafx.compiling.keep_programs`.

    The parameters of `model` may be shapes. Returns programs by name. More frames take the same ones, up to the next power of two times the window.
    """
    programs: dict[tuple, jax.stages.Compiled] = {}

    def compiled(program, *args):
        key = program.__name__, str(jax.tree.map(lambda x: (np.shape(x), getattr(x, "dtype", x)), args))
        programs[key] = programs.get(key) or program.lower(*args).compile()
        return program.eval_shape(*args)

    blank = np.zeros((frames, *size, 3), np.uint8)
    _animate(model, blank[0], blank, Settings(**settings), mesh, compiled)
    return {name: [program for (other, _), program in programs.items() if other == name] for name, _ in programs}


def _animate(
    model: Model,
    reference,
    motion,
    settings: Settings,
    mesh: Mesh | None,
    call: Call,
    noise=None,
    progress=False,
    callback=None,
):
    """`call(program, *args)` runs a program, or compiles it and returns the shapes of its results."""
    reference, motion = _check_images(model, reference, motion)
    plan = _make_plan(model, len(motion), settings, mesh)
    h, w = (side // model.config.autoencoder.factor for side in reference.shape[:2])
    key = jax.random.key(settings.seed)
    x = _starting_noise(
        key, noise, (settings.window if settings.shared_noise else plan.padded, h, w, model.config.unet.channels)
    )
    # float32 means float32, also where the hardware would rather round the factors of a matrix product
    with jax.default_matmul_precision("highest" if model.dtype == jnp.float32 else "default"):
        params = (
            model.params
            if plan.mesh is None
            else jax.device_put(model.params, NamedSharding(plan.mesh, PartitionSpec()))
        )
        inputs, reference_latents = _encode(
            dataclasses.replace(model, params=params), reference, motion, plan, settings, call, key
        )
        x = _sample(
            params,
            jnp.resize(x, (plan.capacity, *x.shape[1:])),
            reference_latents,
            inputs,
            plan,
            settings,
            call,
            progress,
            callback,
        )
        video = _decode(params, x, plan, call, progress)
    if isinstance(x, jax.Array):
        return Animation(video, np.asarray(x[: plan.frames]), window_borders(plan.windows)[: plan.frames - 1])


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What follows from the settings before anything is computed."""

    frames: int  # that are asked for
    padded: int  # that are sampled, see `diffusion.windows.pad_frames`
    capacity: int  # of the program, at least as many
    windows: np.ndarray
    turns: WindowBatches
    table: SamplerTable
    kinds: list[StepKind]  # of every step

    @property
    def networks(self) -> Animator:
        return self.kinds[0].networks

    @property
    def mesh(self) -> Mesh | None:
        return self.kinds[0].mesh


def _make_plan(model: Model, frames: int, s: Settings, mesh: Mesh | None) -> _Plan:
    if not 1 <= s.window <= model.config.unet.temporal.max_frames:
        raise InputError(f"expected a window of 1 to {model.config.unet.temporal.max_frames} frames, found {s.window}")
    if not s.guidance_scale >= 0:
        raise InputError(f"expected a guidance scale of at least 0, found {s.guidance_scale}")
    if min(s.reuse, s.windows_at_once) < 1:
        raise InputError(f"expected reuse and windows_at_once of at least 1, found {s.reuse} and {s.windows_at_once}")
    try:
        table = make_sampler(s.sampler, s.steps, model.schedule, s.eta)
        padded = pad_frames(frames, s.window, s.plan)
        windows = window_plan(padded, s.window, s.overlap, s.plan)
        weights = fusion_weights(windows, s.overlap, s.weights)
        networks = Animator(dataclasses.replace(model.config, fusion=s.fusion or model.config.fusion))
    except ValueError as error:
        raise InputError(str(error)) from error
    capacity = s.window * 2 ** math.ceil(math.log2(padded / s.window))
    most = len(window_plan(capacity, s.window, s.overlap, s.plan))  # windows
    mesh = mesh if len(windows) > 1 else None
    devices = 1 if mesh is None else mesh.size
    at_once = devices * min(s.windows_at_once, -(-most // devices))
    kind = StepKind(
        networks, model.schedule.prediction, s.guidance_scale > 1, bool(s.eta), keep_deep=s.reuse > 1, mesh=mesh
    )
    return _Plan(
        frames, padded, capacity, windows, _turns(windows, weights, at_once, most), table, _kinds(kind, table.times, s)
    )


def _kinds(plain: StepKind, times: np.ndarray, s: Settings) -> list[StepKind]:
    """Of every step: guided or not, whole or shallow."""
    low, high = s.guidance_interval
    guided = [plain.guided and low <= time < high for time in times]
    since, kinds = (
        0,
        [],
    )  # the last step that computed everything: the first, every so many-th, and where guidance begins or ends
    for i, now in enumerate(guided):
        since = i if i - since >= s.reuse or now != guided[i - 1] else since
        kinds.append(dataclasses.replace(plain, guided=now, shallow=i > since))
    return kinds


def _turns(windows: np.ndarray, weights: np.ndarray, at_once: int, most: int) -> WindowBatches:
    """Windows in turns of so many `at_once`, with room for `most` of them; those that fill a turn up weigh nothing."""
    room = -(-most // at_once) * at_once
    indices, weights = (np.pad(x, ((0, room - len(x)), (0, 0))) for x in (windows.astype(np.int32), weights))
    indices, weights = (rearrange(x, "(i p) k -> i p k", p=at_once) for x in (indices, weights))
    return WindowBatches(indices, weights, np.int32(-(-len(windows) // at_once)))


def _encode(
    model: Model, reference: np.ndarray, motion: np.ndarray, plan: _Plan, s: Settings, call: Call, key: jax.Array
) -> tuple[Inputs, jax.Array]:
    """What stays the same at every step, and the reference's latents `1 h w c`."""
    run = functools.partial(call, sampling.apply, plan.networks, model.params)
    text = run("encode_text", model.tokenizer(s.prompt)[None])
    negative = run("encode_text", model.tokenizer(s.negative_prompt)[None]) if s.negative_prompt != s.prompt else None
    reference_latents = run("encode_image", jnp.asarray(reference[None] / 127.5 - 1, model.dtype))
    motion = np.concatenate([motion, np.repeat(motion[-1:], plan.capacity - plan.frames, axis=0)])
    return Inputs(
        motion, text, negative, np.float32(s.guidance_scale), np.float32(s.control_scale), key
    ), reference_latents


def _sample(
    params,
    x,
    reference_latents,
    inputs: Inputs,
    plan: _Plan,
    s: Settings,
    call: Call,
    progress: bool,
    callback: Callable | None,
) -> jax.Array:
    """Noise `f h w c` -> latents. A call takes all steps of a kind whose banks are there, or one where somebody looks on."""
    state, unseen = SamplerState(x, jnp.zeros_like(x)), []
    bar = tqdm(total=s.steps, disable=not progress, unit="step")
    for rows, start in plan.table.parts(BANKS_AT_ONCE):
        bank = call(sampling.banks, plan.networks, params, reference_latents, rows["time"], inputs.text)
        for kind, first, last in _runs(plan.kinds, start, start + len(rows["time"]), progress or callback is not None):
            state = state if kind.shallow else state._replace(deep=None)
            span = np.int32(first - start), np.int32(last - start)
            state, done = call(sampling.run_steps, kind, params, state, inputs, plan.turns, rows, bank, *span)
            if callback is not None:
                callback(first, np.asarray(state.x[: plan.frames]))
            unseen.append(done)
            if progress and len(unseen) > 1:  # the step before: the device always has the next one
                unseen.pop(0).block_until_ready()
                bar.update()
    if progress:
        jax.block_until_ready(unseen)
        bar.update()
    bar.close()
    return state.x


def _runs(kinds: list[StepKind], start: int, stop: int, singly: bool) -> Iterator[tuple[StepKind, int, int]]:
    """The steps from `start` to before `stop`, where there are so many, in runs of one kind: the kind, the first, and the one behind the last."""
    for (kind, _), run in itertools.groupby(
        range(start, min(stop, len(kinds))), lambda i: (kinds[i], i if singly else None)
    ):
        first, *others = run
        yield kind, first, first + len(others) + 1


def _decode(params, x: jax.Array, plan: _Plan, call: Call, progress: bool) -> np.ndarray:
    """Latents `f h w c` -> float32 `f H W 3` in [0, 1]: a frame per device at a time, and the next while one is fetched."""
    size = 1 if plan.mesh is None else plan.mesh.size
    chunks, waiting, video = range(0, plan.frames, size), [], []
    for i in tqdm(chunks, disable=not progress, desc="decoding", unit="frame", unit_scale=size):
        waiting.append(
            call(
                sampling.decode,
                plan.networks,
                plan.mesh,
                params,
                x,
                np.minimum(i + np.arange(size, dtype=np.int32), plan.frames - 1),
            )
        )
        if not isinstance(x, jax.Array):
            return
        while len(waiting) > (0 if i == chunks[-1] else 1):
            video.append(np.asarray(waiting.pop(0)))
    return np.concatenate(video)[: plan.frames]


def _check_images(model: Model, reference: np.ndarray, motion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    reference, motion = np.asarray(reference), np.asarray(motion)
    for name, x, shape in (("reference", reference, "[H, W, 3]"), ("motion", motion, "[frames, H, W, 3]")):
        if x.dtype != np.uint8 or x.ndim != shape.count(",") + 1 or x.shape[-1] != 3:
            raise InputError(f"expected the {name} as uint8 {shape}, found {x.dtype} {list(x.shape)}")
        if 0 in x.shape:
            raise InputError(f"the {name} is empty: {list(x.shape)}")
    factor = model.config.autoencoder.factor
    if any(side % factor for side in reference.shape[:2]):
        H, W = reference.shape[:2]
        near = "x".join(str(max(factor, round(side / factor) * factor)) for side in (H, W))
        raise InputError(
            f"expected a reference whose sides are divisible by {factor}, found {H}x{W}; the nearest such size is {near}"
        )
    return reference, np.stack([resize(frame, reference.shape[:2]) for frame in motion])


def _starting_noise(key: jax.Array, noise: np.ndarray | None, shape: tuple[int, ...]) -> jax.Array:
    if noise is None:
        return jax.random.normal(key, shape)
    if np.shape(noise) != shape:
        raise InputError(
            f"expected noise of the shape {list(shape)} (window, rows, columns, channels), found {list(np.shape(noise))}"
        )
    return jnp.asarray(noise, jnp.float32)
