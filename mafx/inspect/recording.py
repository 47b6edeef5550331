"""An animation that can be looked into: the latents of every step are kept, and a step is computed again to see it.

The animation runs as it always does, so that its video is the same with and without a recording.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mafx import media, sampling
from mafx.budget import ADVICE, Fit
from mafx.compiling import announce_compilation
from mafx.diffusion.schedule import signal_and_noise
from mafx.errors import InputError, memory_advice
from mafx.inspect.record import Observation, Places, observe
from mafx.media import Size
from mafx.models.attention import Grid
from mafx.program import Animation, Program
from mafx.sampling import Inputs

PLACE_LIMIT = 4096  # places of one observation
Point = tuple[int, int]  # row and column in pixels


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Recording:
    """An animation with what it takes to compute any of its steps again. Made by `record`.

    Attributes:
      program: What ran. It has as many frames as were sampled.
      reference: uint8 `H W 3`.
      motion: uint8 `f H W 3`.
      animation: What came out, of as many frames as were asked for.
      latents: float32 `s f h w c`, what entered each of `s` steps.
      inputs: What is the same at every step.
      reference_latents: `1 h w c`.
    """

    program: Program
    reference: np.ndarray
    motion: np.ndarray
    animation: Animation
    latents: np.ndarray
    inputs: Inputs
    reference_latents: jax.Array

    @property
    def steps(self) -> int:
        return len(self.latents)

    @property
    def frames(self) -> int:
        """Number of frames that were asked for."""
        return len(self.animation.video)

    @property
    def latent_size(self) -> Grid:
        """Rows and columns of the latents."""
        return self.latents.shape[2:4]

    def time(self, step: int) -> int:
        """The diffusion time of a step."""
        return int(self.program.table.times[step])

    def window(self, frame: int) -> np.ndarray:
        """The frames, int `k`, that went through the networks with `frame`.

        Where windows overlap, it is the one in which the frame is nearest to the middle.

        Raises:
          InputError: There is no such frame.
        """
        if not 0 <= frame < self.frames:
            raise InputError(f"expected a frame from 0 to {self.frames - 1}, found {frame}")
        windows = self.program.windows
        middle = (windows.shape[1] - 1) / 2
        distances = np.where(windows == frame, np.abs(np.arange(windows.shape[1]) - middle), np.inf).min(1)
        return windows[int(distances.argmin())]

    def observe(self, step: int, window: np.ndarray, places: Places, control_scale: float | None = None) -> Observation:
        """Compute a step of a window again, and see what happens inside.

        Args:
          step: Number of the step.
          window: From `window`.
          places: Whose attention is looked at.
          control_scale: Factor on the residuals; by default that of the animation.

        Returns: NumPy's arrays.

        Raises:
          InputError: There is no such step, place or frame, or the device is too small.
        """
        self._check(step, window, places)
        program = self.program
        kind = dataclasses.replace(program.kinds[step], mesh=None, fresh_noise=False)
        motion = self.inputs.motion[jnp.asarray(window)]
        scale = self.inputs.control_scale if control_scale is None else np.float32(control_scale)
        inputs = self.inputs._replace(motion=motion, control_scale=scale)
        places = Places(np.asarray(places.frames, np.int32), np.asarray(places.points, np.float32))
        with program.precision(), announce_compilation(), memory_advice(ADVICE):
            bank = self._bank(step)
            params, time = program.fetch(Fit(), "steps"), program.table.times[step].astype(np.int32)
            return jax.device_get(observe(kind, params, self.latents[step, window], inputs, time, bank, places))

    def _check(self, step: int, window: np.ndarray, places: Places) -> None:
        if not 0 <= step < self.steps:
            raise InputError(f"expected a step from 0 to {self.steps - 1}, found {step}")
        frames, points = np.asarray(places.frames), np.asarray(places.points)
        if points.shape != (len(frames), 2) or not 1 <= len(frames) <= PLACE_LIMIT:
            raise InputError(f"expected 1 to {PLACE_LIMIT} places of two shares each, found {list(points.shape)}")
        if not ((points >= 0) & (points < 1)).all() or not ((frames >= 0) & (frames < len(window))).all():
            raise InputError("expected places inside of the picture and of the window, found others")

    def _bank(self, step: int):
        """The bank at a step, leaves `1 m c`."""
        params = self.program.fetch(Fit(), "banks")
        times = self.program.table.times[step : step + 1].astype(np.int32)
        bank = sampling.write_banks(self.program.networks, params, self.reference_latents, times, self.inputs.text)
        return jax.tree.map(lambda tokens: tokens[0], bank)

    def clean(self, step: int, window: np.ndarray, prediction: Any) -> np.ndarray:
        """x_0, the clean latents `k h w c` that a prediction of a window at a step means."""
        table = self.program.table
        x: Any = self.latents[step, window]
        predicts = self.program.model.schedule.prediction
        clean, _ = signal_and_noise(x, prediction, table.alpha[step], table.sigma[step], predicts)
        return np.asarray(clean)

    def picture(self, latents: np.ndarray) -> np.ndarray:
        """Decode the latents `h w c` of one frame: uint8 `H W 3`."""
        program = self.program
        params, first = program.fetch(Fit(), "decoding"), np.zeros(1, np.int32)
        decode = functools.partial(sampling.decode, program.networks, None, program.model.dtype, params)
        with program.precision(), memory_advice(ADVICE):
            (picture,) = decode(jnp.asarray(latents[None], jnp.float32), first)
        return media.to_uint8(np.asarray(picture))


def point_at(place: Point, size: Size) -> tuple[float, float]:
    """The middle of a pixel, as `Places` has it.

    Raises:
      InputError: A picture of this size has no such pixel.
    """
    (y, x), (H, W) = place, size
    if not (0 <= y < H and 0 <= x < W):
        raise InputError(f"expected a place of rows 0 to {H - 1} and columns 0 to {W - 1}, found {y},{x}")
    return (y + 0.5) / H, (x + 0.5) / W


def record(
    program: Program,
    reference: np.ndarray,
    motion: np.ndarray,
    *,
    progress: bool = True,
    callback: Callable[[int, np.ndarray], None] | None = None,
) -> Recording:
    """Animate, and keep the latents of every step: 4 bytes times `steps f h w c`.

    Args:
      program: From `mafx.plan`, for one device and without reuse between steps.
      reference: uint8 `H W 3`, as `Program.run` takes it.
      motion: uint8 `f H W 3`, likewise.
      progress: Whether bars are shown.
      callback: As `Program.run` takes it; it is shown all frames that are sampled.

    Raises:
      InputError: As `Program.run`. Or the program is another one, or its model has no bank.
    """
    if program.settings.reuse > 1:
        raise InputError(f"expected steps that compute everything, found a reuse of {program.settings.reuse}; take 1")
    if program.mesh is not None:
        raise InputError(
            f"expected a program for one device, found one for {program.mesh.size}; plan it without a mesh"
        )
    if (appearance := program.model.config.appearance) != "bank":
        raise InputError(f"expected a model with a bank, found one whose reference comes as {appearance}")
    frames, added = len(motion), program.padded - len(motion)
    # Frames that fill up the last window are sampled anyway. Here they are asked for, so that their latents are seen.
    program = dataclasses.replace(program, frames=program.padded)
    motion = np.concatenate([motion, np.repeat(motion[-1:], added, axis=0)])
    latents = [np.asarray(program.starting_noise()[: program.padded])]

    def keep(step: int, x: np.ndarray) -> None:
        latents.append(x)
        if callback is not None:
            callback(step, x)

    whole = program.run(reference, motion, progress=progress, callback=keep)
    with program.precision():
        inputs, reference_latents = program.encode(Fit(), reference, motion)
    return Recording(
        program=program,
        reference=reference,
        motion=motion[:frames],
        animation=Animation(whole.video[:frames], whole.latents[:frames], whole.borders[: frames - 1]),
        latents=np.stack(latents[:-1]),
        inputs=inputs,
        reference_latents=reference_latents,
    )
