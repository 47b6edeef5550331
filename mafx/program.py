"""An animation as a value: what it computes is planned before anything runs.

`plan(model, settings, size, frames)` gives a `Program`. It can be lowered, compiled (for this machine or another one),
costed, and run.
"""

import contextlib
import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, Sharding
from tqdm.auto import tqdm

from mafx import sampling
from mafx.budget import ADVICE, GIB, Fit, Need, TooSmallError, fit_networks, usable_bytes
from mafx.compiling import announce_compilation, jit
from mafx.diffusion.samplers import SamplerTable, make_sampler
from mafx.diffusion.windows import pad_frames, window_borders, window_plan
from mafx.errors import InputError, is_out_of_memory, memory_advice
from mafx.flops import count_flops
from mafx.media import Size, to_uint8
from mafx.model import Model
from mafx.models.animator import Animator
from mafx.models.unet import Bank
from mafx.placing import (
    bytes_of,
    default_device,
    default_sharding,
    movable_bytes,
    parameters_on_device,
    shapes_on_device,
)
from mafx.progress import StepBar
from mafx.sampling import PHASES, Inputs, SamplerState
from mafx.settings import Settings
from mafx.steps import StepKind, WindowBatches, batch_windows, runs_of_one_kind, step_kinds

SMALLER = (3 / 4, 1 / 2, 1 / 4)  # of both sides, tried where a device is too small
# Steps whose banks are computed together and held; at 512x512 in bfloat16 the bank of a step takes 14 MiB.
MAX_BANKS = 8
Callback = Callable[[int, np.ndarray], None]  # (number of a step, latents behind it)
Decode = Callable[[int], np.ndarray]  # number of a frame to uint8 `H W 3`
log = logging.getLogger("mafx")


class Part(NamedTuple):
    """A compiled function of a program.

    Attributes:
      name: What it computes.
      phase: A key of `sampling.PHASES`, which says whose parameters it takes.
      function: The jitted function.
      arguments: Its arguments; large ones are `jax.ShapeDtypeStruct`s.
      runs: How many times an animation runs it. For steps, a run is one step of one batch of windows.
    """

    name: str
    phase: str
    function: jit
    arguments: tuple
    runs: int


class Cost(NamedTuple):
    """What a part takes on one device.

    Attributes:
      name: Of the part.
      runs: Of the part.
      flops: Floating-point operations of one run, of matrix products and convolutions.
      argument_bytes: Of its arguments, parameters included.
      temporary_bytes: Of what it computes on the way, as the compiler plans it.
    """

    name: str
    runs: int
    flops: int
    argument_bytes: int
    temporary_bytes: int


class Progress(NamedTuple):
    """How far an animation is, for whoever watches it.

    Attributes:
      part: What goes on: "steps" or "decoding".
      done: How much of it is done.
      total: Number of steps, or of frames.
      decode: Decodes a frame of the clean video that the steps expect so far. None while frames are decoded anyway,
        and where networks take turns on the device. It may be called before the watcher returns.
    """

    part: str
    done: int
    total: int
    decode: Decode | None = None


Watcher = Callable[[Progress], None]
Piece = tuple[dict, int, Bank]  # rows of the sampler table, the number of the first one's step, the banks of all


class Appearance(NamedTuple):
    """What a program knows of a reference before it knows the motion.

    Attributes:
      fit: Whether all networks are on the device at once.
      text: Text states `1 n c`.
      negative: Text states of the unconditional half, None where they equal `text`.
      banks: The banks of all steps.
      noise: Latents `f h w c` to start from.
    """

    fit: Fit
    text: jax.Array
    negative: jax.Array | None
    banks: list[Piece]
    noise: jax.Array


@dataclasses.dataclass(frozen=True)
class Animation:
    """What an animation gives.

    Attributes:
      video: float32 `f H W 3` in [0, 1].
      latents: float32 `f h w c`, as the diffusion left them.
      borders: bool `f - 1`, see `diffusion.windows.window_borders`.
    """

    video: np.ndarray
    latents: np.ndarray
    borders: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Program:
    """Everything that an animation of some size and length computes. Made by `plan`.

    Attributes:
      model: The model; its parameters may be shapes where the program is not run.
      settings: How to animate.
      size: Rows and columns of the video in pixels.
      frames: Number of frames that are asked for.
      padded: Number of frames that are sampled, see `diffusion.windows.pad_frames`.
      capacity: Number of frames that the compiled program has room for.
      windows: Frame indices of every window.
      batches: The same in batches, filled up to the capacity.
      table: The sampler's table.
      kinds: The kind of every step.
      memory: GiB of the device's memory, None where it is asked itself.
    """

    model: Model
    settings: Settings
    size: Size
    frames: int
    padded: int
    capacity: int
    windows: np.ndarray
    batches: WindowBatches
    table: SamplerTable
    kinds: list[StepKind]
    memory: float | None = None

    @property
    def networks(self) -> Animator:
        return self.kinds[0].networks

    @property
    def mesh(self) -> Mesh | None:
        """The mesh that windows are spread over, None where one device computes everything."""
        return self.kinds[0].mesh

    @functools.cached_property
    def sharding(self) -> Sharding | None:
        """Where its arrays lie; None leaves it to JAX."""
        return default_sharding(self.model.params, self.mesh)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """`h w c`."""
        factor = self.model.config.autoencoder.factor
        H, W = self.size
        return H // factor, W // factor, self.model.config.unet.channels

    # -- Before it runs

    def parts(self, sharding: Sharding | None = None) -> list[Part]:
        """Every function that an animation calls, in that order, on shapes.

        Args:
          sharding: Where the arrays lie, for a device that is not here; by default where they lie when it runs.
        """
        networks, s = self.networks, self.settings
        sharding = sharding or self.sharding
        params = {phase: parameters_on_device(self._parameters(phase), sharding) for phase in PHASES}
        parts: list[Part] = []

        def add(phase: str, runs: int, function: jit, *arguments: object, name: str = ""):
            parts.append(Part(name or phase, phase, function, arguments, runs))
            return shapes_on_device(function.eval_shape(*arguments), sharding)

        def array(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

        ids, dtype = self.model.tokenizer("")[None], self.model.dtype
        prompts = len({s.prompt, s.negative_prompt})
        text = add("text", prompts, sampling.encode_text, networks, params["text"], ids)
        image, motion = array((1, *self.size, 3), dtype), array((self.capacity, *self.size, 3), np.uint8)
        reference = add("reference", 1, sampling.encode_image, networks, params["reference"], image)
        embedded = add("motion", 1, sampling.embed_motion, networks, dtype, s.window, params["motion"], motion)
        inputs = jax.eval_shape(self._inputs, embedded, text, text if prompts > 1 else None)
        inputs = shapes_on_device(inputs, sharding)
        (rows, _), *others = self.table.parts(MAX_BANKS)
        times = rows["time"]
        banks = add("banks", 1 + len(others), sampling.write_banks, networks, params["banks"], reference, times, text)
        x: Any = array((self.capacity, *self.latent_shape), jnp.float32)
        deep_of: dict[bool, Any] = {}  # by whether a step is guided
        for kind in dict.fromkeys(self.kinds):
            state = SamplerState(x, x, deep_of[kind.guided] if kind.shallow else None)
            span = np.int32(0), np.int32(1)
            arguments = kind, params["steps"], state, inputs, self.batches, rows, banks, *span
            runs = self.kinds.count(kind) * int(self.batches.number)
            state, _ = add("steps", runs, sampling.run_steps, *arguments, name=f"steps{kind}")
            deep_of[kind.guided] = state.deep
        chunk = np.zeros(self._frames_at_once, np.int32)
        chunks = math.ceil(self.frames / self._frames_at_once)
        add("decoding", chunks, sampling.decode, networks, self.mesh, dtype, params["decoding"], x, chunk)
        return parts

    def _parameters(self, phase: str) -> dict:
        """The parameters of the networks that a phase uses; patches instead of an autoencoder have none."""
        return {name: self.model.params[name] for name in PHASES[phase] if name in self.model.params}

    def lower(self) -> dict[str, jax.stages.Lowered]:
        """Every part, by name, lowered for this machine."""
        with self.precision():
            return {part.name: part.function.lower(*part.arguments) for part in self.parts()}

    def compile(self) -> dict[str, jax.stages.Compiled]:
        """Every part, by name, compiled for this machine, and kept in the cache of `mafx.compiling.keep_programs`.

        More frames take the same programs, up to the next power of two times the window.
        """
        return {name: lowered.compile() for name, lowered in self.lower().items()}

    def costs(self) -> list[Cost]:
        """What every part takes: compiles it, and runs nothing."""
        costs = []
        with self.precision():
            for part in self.parts():
                traced = part.function.trace(*part.arguments)
                memory: Any = traced.lower().compile().memory_analysis()
                flops, arguments = count_flops(traced.jaxpr.jaxpr), memory.argument_size_in_bytes
                costs.append(Cost(part.name, part.runs, flops, arguments, memory.temp_size_in_bytes))
        return costs

    def needs(self, compiled: Mapping[str, jax.stages.Compiled] | None = None) -> list[Need]:
        """What every part needs on a device, as the compiler plans it. Nothing runs.

        Args:
          compiled: Every part, by name, compiled for that device; by default compiled for this machine.
        """
        compiled = compiled or self.compile()
        with self.precision():
            parts = self.parts()
            results = {part.name: bytes_of(part.function.eval_shape(*part.arguments)) for part in parts}
        latents = self.capacity * math.prod(self.latent_shape) * 4
        needs = []
        for part in parts:
            memory: Any = compiled[part.name].memory_analysis()
            working = bytes_of(part.arguments) - bytes_of(self._parameters(part.phase)) + memory.temp_size_in_bytes
            working += memory.output_size_in_bytes - memory.alias_size_in_bytes
            # The next banks may be written before the last ones are done with. Motion and latents wait for the steps.
            working += results["banks"] + (0 if part.phase == "steps" else results["motion"] + latents)
            needs.append(Need(part.name, part.phase, PHASES[part.phase], working))
        return needs

    def fit(self) -> Fit:
        """Whether all networks are on the device at once, or take turns. It is known once every part is compiled.

        Raises:
          InputError: Where the device is too small for a part. The message has a size that fits, if one is found.
        """
        if self.memory is None and not any(self._movable.values()):
            return Fit()
        try:
            return self._fit()
        except TooSmallError as error:
            raise InputError(f"{error}; {self.what_fits()}") from error

    @property
    def _movable(self) -> dict[str, int]:
        """Bytes of each network that can leave the device."""
        return {name: movable_bytes(tree) for name, tree in self.model.params.items()}

    @property
    def _resident(self) -> int:
        """Bytes of the networks that cannot."""
        return bytes_of(self.model.params) - sum(self._movable.values())

    @property
    def _usable(self) -> float | None:
        device = default_device() if self.mesh is None else self.mesh.devices.flat[0]
        return usable_bytes(device, self.memory, self.model.on_device(self.sharding).bytes + self._resident)

    def _fit(self) -> Fit:
        if (usable := self._usable) is None:
            return Fit()
        try:
            needs = self.needs()
        except jax.errors.JaxRuntimeError as error:
            if is_out_of_memory(error):
                raise TooSmallError(
                    f"the compiler finds no room on the device ({str(error).splitlines()[0]})"
                ) from error
            raise
        return fit_networks(needs, self._movable, self._resident, usable)

    def what_fits(self) -> str:
        """What to do on a device that is too small. Smaller sizes are compiled, which takes minutes for large ones."""
        if self._usable is None:
            return ADVICE
        factor = self.model.config.autoencoder.factor
        for share in SMALLER:
            H, W = (max(1, int(share * side) // factor) * factor for side in self.size)
            log.info("The device is too small; looking whether %dx%d fits.", H, W)
            smaller = dataclasses.replace(self, size=(H, W))
            with contextlib.suppress(TooSmallError):
                return f"{H}x{W} fits, with {smaller._fit().peak / GIB:.1f} GiB"
        return ADVICE

    # -- Running

    def run(
        self,
        reference: np.ndarray,
        motion: np.ndarray,
        *,
        noise: np.ndarray | None = None,
        progress: bool = True,
        callback: Callback | None = None,
        watcher: Watcher | None = None,
    ) -> Animation:
        """Animate.

        Args:
          reference: uint8 `H W 3`, of the program's size.
          motion: uint8 `f H W 3`, likewise, of the program's number of frames.
          noise: float32 `window h w c` to start from, instead of the seed's.
          progress: Whether bars are shown.
          callback: Called after every step with its number and the latents, float32 `f h w c`.
          watcher: Called after every step and every decoded frame. What it raises ends the animation.

        Raises:
          InputError: For arrays of other shapes, or a device that is too small.
          FloatingPointError: Where the networks give no numbers.
        """
        self._check_shape("reference", reference, (*self.size, 3))
        self._check_shape("motion", motion, (self.frames, *self.size, 3))
        x = self.starting_noise(noise)
        with self.precision(), announce_compilation(progress), memory_advice(self.what_fits):
            video, latents = self._animate(self.fit(), x, reference, motion, progress, callback, watcher)
        self._check_finite(video)
        borders = window_borders(self.windows)[: self.frames - 1]
        return Animation(video, latents, borders)

    def see(self, reference: np.ndarray) -> Appearance:
        """Compute what depends on the reference, for `move`: banks are written once for any number of motions.

        Args:
          reference: uint8 `H W 3`, of the program's size.

        Raises:
          InputError: As `run`.
        """
        self._check_shape("reference", reference, (*self.size, 3))
        noise = self.starting_noise()
        with self.precision(), memory_advice(self.what_fits):
            fit = self.fit()
            text, negative, latents = self._encode_reference(fit, reference)
            return jax.block_until_ready(Appearance(fit, text, negative, list(self._banks(fit, latents, text)), noise))

    def move(self, appearance: Appearance, motion: np.ndarray) -> np.ndarray:
        """Animate what was seen, as `run` does.

        Args:
          appearance: From `see`, of this program.
          motion: uint8 `f H W 3`, of the program's size and number of frames.

        Returns: float32 `f H W 3` in [0, 1].

        Raises:
          InputError: As `run`, and FloatingPointError likewise.
        """
        self._check_shape("motion", motion, (self.frames, *self.size, 3))
        fit, text, negative, banks, noise = appearance
        with self.precision(), memory_advice(self.what_fits):
            inputs = self._on_device(self._inputs(self._embed(fit, motion), text, negative))
            x = jnp.copy(noise)  # the steps give its memory away
            video = self._decode(fit, self._sample(fit, x, banks, inputs, False, None, None), False, None)
        self._check_finite(video)
        return video

    def _check_finite(self, video: np.ndarray) -> None:
        if not np.isfinite(video).all():
            raise FloatingPointError(f"the video is not finite in {self.model.dtype}; take another dtype or checkpoint")

    def _check_shape(self, name: str, picture: np.ndarray, shape: tuple[int, ...]) -> None:
        if picture.shape != shape:
            raise InputError(f"expected a {name} of the shape {list(shape)}, found {list(picture.shape)}")

    def _animate(
        self,
        fit: Fit,
        x: jax.Array,
        reference: np.ndarray,
        motion: np.ndarray,
        progress: bool,
        callback: Callback | None,
        watcher: Watcher | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """From noise `f h w c` to the video `f H W 3` and its latents `f h w c`."""
        networks = self.model.on_device(self.sharding)
        if fit.limited:
            log.info("%s", fit)
        before = networks.moved
        inputs, reference_latents = self.encode(fit, reference, motion)
        banks = self._banks(fit, reference_latents, inputs.text)
        x = self._sample(fit, x, banks, inputs, progress, callback, watcher)
        video = self._decode(fit, jax.block_until_ready(x), progress, watcher)
        moved = networks.moved.bytes - before.bytes
        if fit.limited and moved:
            seconds = networks.moved.seconds - before.seconds
            log.info("Moved %.1f GiB of weights to the device in %.1f s.", moved / GIB, seconds)
        return video, np.asarray(x[: self.frames])

    @property
    def _frames_at_once(self) -> int:
        """Frames that are decoded together: one per device."""
        return 1 if self.mesh is None else self.mesh.size

    def precision(self):
        """float32 means float32, also where the hardware would rather round the factors of a matrix product."""
        return jax.default_matmul_precision("highest" if self.model.dtype == jnp.float32 else "default")

    def _inputs(self, motion, text, negative) -> Inputs:
        s = self.settings
        guidance_scale, control_scale = np.float32(s.guidance_scale), np.float32(s.control_scale)
        return Inputs(motion, text, negative, guidance_scale, control_scale, jax.random.key(s.seed))

    def starting_noise(self, noise: np.ndarray | None = None) -> jax.Array:
        """Latents `f h w c` of the capacity: the noise, repeated along the frames."""
        s = self.settings
        shape = (s.window if s.shared_noise else self.padded, *self.latent_shape)
        if noise is not None and np.shape(noise) != shape:
            expected = f"{list(shape)} (window, rows, columns, channels)"
            raise InputError(f"expected noise of the shape {expected}, found {list(np.shape(noise))}")
        x = jax.random.normal(jax.random.key(s.seed), shape) if noise is None else jnp.asarray(noise, jnp.float32)
        return self._on_device(jnp.resize(x, (self.capacity, *shape[1:])))

    def _on_device(self, tree: Any) -> Any:
        return jax.device_put(tree, self.sharding)

    def fetch(self, fit: Fit, phase: str) -> dict:
        """The parameters of the networks that a phase uses, on the device."""
        phases = list(PHASES)
        later = phases.index(phase) + 1
        following = [name for other in phases[later:] + phases[:later] for name in PHASES[other]]
        networks, room = self.model.on_device(self.sharding), fit.room.get(phase, math.inf)
        return networks.fetch(self.model.params, PHASES[phase], room, following)

    def encode(self, fit: Fit, reference: np.ndarray, motion: np.ndarray) -> tuple[Inputs, jax.Array]:
        """What is the same at every step, and the reference's latents `1 h w c`."""
        text, negative, latents = self._encode_reference(fit, reference)
        return self._on_device(self._inputs(self._embed(fit, motion), text, negative)), latents

    def _encode_reference(self, fit: Fit, reference: np.ndarray) -> tuple[jax.Array, jax.Array | None, jax.Array]:
        """The states of both texts, and the reference's latents `1 h w c`."""
        text, negative = self._encode_texts(fit)
        image = self._on_device(jnp.asarray(reference[None] / 127.5 - 1, self.model.dtype))
        latents = sampling.encode_image(self.networks, self.fetch(fit, "reference"), image)
        return jax.block_until_ready((text, negative, latents))

    def _embed(self, fit: Fit, motion: np.ndarray) -> jax.Array:
        """The embedded motion `f h w c`. Its last frame fills the capacity up."""
        motion = np.concatenate([motion, np.repeat(motion[-1:], self.capacity - self.frames, axis=0)])
        params, frames = self.fetch(fit, "motion"), self._on_device(motion)
        embedded = sampling.embed_motion(self.networks, self.model.dtype, self.settings.window, params, frames)
        return jax.block_until_ready(embedded)

    def _encode_texts(self, fit: Fit) -> tuple[jax.Array, jax.Array | None]:
        """The states of the text, and of the negative one where that is another."""
        s, tokenizer = self.settings, self.model.tokenizer
        encode = functools.partial(sampling.encode_text, self.networks, self.fetch(fit, "text"))
        text = encode(tokenizer(s.prompt)[None])
        negative = None if s.negative_prompt == s.prompt else encode(tokenizer(s.negative_prompt)[None])
        return jax.block_until_ready((text, negative))

    def _banks(self, fit: Fit, reference: jax.Array, text: jax.Array) -> Iterator[Piece]:
        """The banks of all steps, some at a time.

        Where networks take turns, all are written before the first is given, and they wait on the host.
        """
        pieces = list(self.table.parts(MAX_BANKS))
        written: Iterable[Bank] = (
            sampling.write_banks(self.networks, self.fetch(fit, "banks"), reference, rows["time"], text)
            for rows, _ in pieces
        )
        if not fit.together:
            written = [jax.device_get(bank) for bank in written]
        for (rows, start), bank in zip(pieces, written, strict=True):
            yield rows, start, bank

    def _sample(
        self,
        fit: Fit,
        x: jax.Array,
        pieces: Iterable[Piece],
        inputs: Inputs,
        progress: bool,
        callback: Callback | None,
        watcher: Watcher | None,
    ) -> jax.Array:
        """Noise `f h w c` to latents.

        One call runs all steps of a kind. With a bar, a callback or a watcher, it runs a single step.
        """
        singly = progress or callback is not None or watcher is not None
        state, pending = SamplerState(x, jnp.zeros_like(x)), []
        bar = StepBar(self.settings.steps, enabled=progress)
        for rows, start, piece in pieces:
            banks, params = self._on_device(piece), self.fetch(fit, "steps")
            for kind, first, last in runs_of_one_kind(self.kinds, start, start + len(rows["time"]), singly):
                if not kind.shallow:
                    state = state._replace(deep=None)
                span = np.int32(first - start), np.int32(last - start)
                state, done = sampling.run_steps(kind, params, state, inputs, self.batches, rows, banks, *span)
                if callback is not None:
                    callback(first, np.asarray(state.x[: self.frames]))
                if watcher is not None:
                    done.block_until_ready()
                    decode = functools.partial(self._preview, fit, state.clean) if fit.together else None
                    watcher(Progress("steps", first + 1, self.settings.steps, decode))
                pending.append(done)
                if progress and len(pending) > 1:  # waits for the step before: the device always has the next one
                    pending.pop(0).block_until_ready()
                    bar.update()
        if progress:
            jax.block_until_ready(pending)
            bar.update()
        bar.close()
        return state.x

    def _preview(self, fit: Fit, clean: jax.Array, frame: int) -> np.ndarray:
        """A frame of clean latents `f h w c`, uint8 `H W 3`. It takes the compiled program of `_decode`."""
        frames, params = np.full(self._frames_at_once, frame, np.int32), self.fetch(fit, "decoding")
        return to_uint8(sampling.decode(self.networks, self.mesh, self.model.dtype, params, clean, frames)[0])

    def _decode(self, fit: Fit, x: jax.Array, progress: bool, watcher: Watcher | None) -> np.ndarray:
        """Latents `f h w c` to float32 `f H W 3` in [0, 1]. The device decodes the next while some are fetched."""
        at_once, params = self._frames_at_once, self.fetch(fit, "decoding")
        chunks, waiting, video = range(0, self.frames, at_once), [], []
        for i in tqdm(chunks, disable=not progress, desc="decoding", unit="frame", unit_scale=at_once):
            frames = np.minimum(i + np.arange(at_once, dtype=np.int32), self.frames - 1)
            waiting.append(sampling.decode(self.networks, self.mesh, self.model.dtype, params, x, frames))
            if len(waiting) > 1:
                video.append(np.asarray(waiting.pop(0)))
                if watcher is not None:
                    watcher(Progress("decoding", min(len(video) * at_once, self.frames), self.frames))
        video += map(np.asarray, waiting)
        return np.concatenate(video)[: self.frames]


def plan(
    model: Model,
    settings: Settings | None = None,
    size: Size | None = None,
    frames: int = 16,
    mesh: Mesh | None = None,
    *,
    memory: float | None = None,
) -> Program:
    """Plan an animation.

    Args:
      model: The model; its parameters may be shapes (`mafx.model.abstract_model`) where the program is not run.
      settings: How to animate.
      size: Rows and columns of the video in pixels; by default those that the model was trained at.
      frames: Number of frames.
      mesh: The windows of a long video are spread over its devices, each of which holds all parameters. By default
        there is one device.
      memory: GiB of the device's memory that may be used, as cards are sold. Where the networks do not fit in together,
        they take turns on the device, for the same video. By default an accelerator says itself how much it has.

    Raises:
      InputError: For settings that do not fit the model.
    """
    s, size = settings or Settings(), size or model.size
    _check_size(size, model.config.autoencoder.factor)
    temporal = model.config.unet.temporal
    if temporal is not None and s.window > temporal.max_frames:
        raise InputError(f"expected a window of 1 to {temporal.max_frames} frames, found {s.window}")
    try:
        table = make_sampler(s.sampler, s.steps, model.schedule, s.eta)
        padded = pad_frames(frames, s.window, s.plan)
        windows = window_plan(padded, s.window, s.overlap, s.plan)
        networks = Animator(dataclasses.replace(model.config, fusion=s.fusion or model.config.fusion))
    except ValueError as error:
        raise InputError(str(error)) from error
    if table.times[0] < model.schedule.steps // 2:  # one DDIM step, whose time is "leading" as published
        where = f"begins at time {table.times[0]} of {model.schedule.steps}, where the network expects little noise"
        log.warning("Sampling %s: expect noise. Take more steps, or the sampler euler.", where)
    # A power of two of windows' worth of frames: videos of many lengths share one compiled program.
    capacity = s.window * 2 ** math.ceil(math.log2(padded / s.window))
    mesh = mesh if len(windows) > 1 else None
    kind = StepKind(
        networks=networks,
        prediction=model.schedule.prediction,
        guided=s.guidance_scale > 1,
        fresh_noise=bool(table.fresh_noise.any()),
        keep_deep=s.reuse > 1,
        mesh=mesh,
    )
    return Program(
        model=model,
        settings=s,
        size=size,
        frames=frames,
        padded=padded,
        capacity=capacity,
        windows=windows,
        batches=batch_windows(windows, s, capacity, 1 if mesh is None else mesh.size),
        table=table,
        kinds=step_kinds(kind, table.times, s),
        memory=memory,
    )


def _check_size(size: Size, factor: int) -> None:
    if any(side < 1 or side % factor for side in size):
        H, W = size
        near = "x".join(str(max(factor, round(side / factor) * factor)) for side in size)
        raise InputError(f"expected sides divisible by {factor}, found {H}x{W}; the nearest such size is {near}")
