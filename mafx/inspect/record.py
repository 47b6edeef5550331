"""What the networks do inside of a step: whom places and frames attend, and how much the motion adds.

Attention kernels never hold their weights, so that the weights of a few chosen places are computed once more, from the
queries and keys that the attention is given. Flax shows these to an interceptor (`flax.linen.intercept_methods`): the
networks know nothing of it, and the program of a step stays what it is.

Letters: `p` chosen places, `k` frames of a window, `n` tokens of a frame, `m` of the reference.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from mafx.compiling import jit
from mafx.models.attention import Attention, Grid
from mafx.models.fused import KeysValues
from mafx.models.temporal import FrameAttention
from mafx.models.unet import Bank, Decoder, Encoded, MiddleBlock, Residuals
from mafx.sampling import Inputs, predict
from mafx.steps import StepKind

DENOISER = "unet"  # its name in the tree of parameters; the other networks are not recorded
MIDDLE = "middle"


class Places(NamedTuple):
    """Chosen places of a window.

    Attributes:
      frames: int32 `p`, positions of their frames in the window.
      points: float32 `p 2`, rows and columns as shares of the picture's height and width, from 0 to below 1.
    """

    frames: Any
    points: Any


class Attended(NamedTuple):
    """Weights of mixed attention, means over heads, float32. Both parts of a place sum to 1 together.

    Attributes:
      own: Of the tokens of the place's own frame, `p n`.
      reference: Of the tokens of the reference, `p m`.
    """

    own: Any
    reference: Any


class Sizes(NamedTuple):
    """Root mean squares: of what a ControlNet adds, and of what it is added to."""

    added: Any
    base: Any


class Observation(NamedTuple):
    """What is seen of a step, in the half of guidance that knows the reference. Layers are named as in `Bank`.

    Attributes:
      prediction: What the sampler is given, guided, float32 `k h w c`.
      mixed: By layer, whom the chosen places attend.
      temporal: By layer, how much each frame (row) attends each other one, means over heads and places, float32 `k k`.
      residuals: Sizes of the ControlNet's residuals, by the number of the skip connection, or "middle", and by rows and
        columns: "00 64x64".
    """

    prediction: Any
    mixed: dict[str, Attended]
    temporal: dict[str, Any]
    residuals: dict[str, Sizes]


# -- Weights


def mixed_weights(q: jax.Array, own: jax.Array, shared: jax.Array) -> tuple[jax.Array, jax.Array]:
    """softmax(q k^T / sqrt(d)) over the keys of a frame and those of the reference.

    Args:
      q: One query, `a d`.
      own: Keys of its frame, `n a d`.
      shared: Keys of the reference, `m a d`.

    Returns: The weights of both parts, float32 `a n` and `a m`.
    """
    scores = [jnp.einsum("ad,nad->an", q, k, preferred_element_type=jnp.float32) for k in (own, shared)]
    weights = jax.nn.softmax(jnp.concatenate(scores, -1) * q.shape[-1] ** -0.5)
    return weights[:, : len(own)], weights[:, len(own) :]


def frame_weights(q: jax.Array, k: jax.Array) -> jax.Array:
    """softmax(q k^T / sqrt(d)) along frames, for queries and keys `b f n a d`: float32 `b n a f f`, queries in rows."""
    scores = jnp.einsum("bfnad,bgnad->bnafg", q, k, preferred_element_type=jnp.float32)
    return jax.nn.softmax(scores * q.shape[-1] ** -0.5)


def token_grid(tokens: int, size: Grid) -> Grid:
    """Rows and columns of the tokens of a layer. Every level of a UNet halves the `size` of latents, and rounds up."""
    h, w = size
    while h * w > tokens:
        h, w = (h + 1) // 2, (w + 1) // 2
    return h, w


def token_of(points: Any, grid: Grid) -> Any:
    """The tokens, int32 `p`, in which points `p 2` lie, see `Places`. NumPy's or JAX's arrays."""
    h, w = grid
    return (points[:, 0] * h).astype("int32") * w + (points[:, 1] * w).astype("int32")


# -- Recording


class Recorder:
    """An interceptor of Flax's methods that keeps what a call of the denoiser shows, see `Observation`.

    Guidance calls its decoder twice. The half with the reference comes last, and stays.
    """

    def __init__(self, places: Places, size: Grid):
        """`size` is that of the latents."""
        self.mixed: dict[str, Attended] = {}
        self.temporal: dict[str, jax.Array] = {}
        self.residuals: dict[str, Sizes] = {}
        self._places, self._size = places, size
        self._middle: Any = None  # the output of the middle block

    def __call__(self, next_function, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        module, method = context.module, context.method_name
        out = next_function(*args, **kwargs)
        if module.path[:1] != (DENOISER,):
            return out
        if isinstance(module, Attention) and method == "attend":
            self._attention(module, *args)
        elif isinstance(module, MiddleBlock) and method == "__call__":
            self._middle, _ = out
        elif isinstance(module, Decoder) and method == "__call__":
            self._residual_sizes(*args)
        return out

    def _attention(self, module: Attention, q: jax.Array, own: KeysValues | None, shared: KeysValues | None, _) -> None:
        layer = "/".join(module.path[2:4])  # behind the network and its half
        if isinstance(module, FrameAttention) and own is not None:
            self.temporal[f"{layer}/{module.name}"] = frame_weights(q, own[0]).mean((0, 1, 2))
        elif own is not None and shared is not None:
            self.mixed[layer] = self._mixed(q, own[0], shared[0])

    def _mixed(self, q: jax.Array, own: jax.Array, shared: jax.Array) -> Attended:
        """Of queries and own keys `1 k n a d`, and of keys of the reference `1 m a d`, what chosen places attend."""
        tokens = token_of(self._places.points, token_grid(q.shape[2], self._size))

        def attend(place: tuple[jax.Array, jax.Array]) -> Attended:  # one by one, so that keys are not repeated
            frame, token = place
            weights = mixed_weights(q[0, frame, token], own[0, frame], shared[0])
            return Attended(*(x.mean(0) for x in weights))

        return jax.lax.map(attend, (self._places.frames, tokens))

    def _residual_sizes(self, encoded: Encoded, text, bank, residuals: Residuals | None = None, deep=None) -> None:
        if residuals is None:
            return
        names = [f"{i:02d}" for i in range(len(residuals.skips))]
        sizes: dict[str, Any] = dict(zip(names, zip(residuals.skips, encoded.skips, strict=True), strict=True))
        for name, (added, base) in (sizes | {MIDDLE: (residuals.middle, self._middle)}).items():
            h, w = added.shape[2:4]
            self.residuals[f"{name} {h}x{w}"] = Sizes(_root_mean_square(added), _root_mean_square(base))


def _root_mean_square(x: Any) -> jax.Array:
    squares = jnp.einsum("bfhwc,bfhwc->", x, x, preferred_element_type=jnp.float32)  # without a copy in float32
    return jnp.sqrt(squares / x.size)


@functools.partial(jit, static_argnums=0)
def observe(
    kind: StepKind, params: dict, x: jax.Array, inputs: Inputs, time: jax.Array, bank: Bank, places: Places
) -> Observation:
    """What a step does to a window.

    Args:
      kind: Of the step; all of it is computed.
      params: Parameters of the networks of the phase "steps", see `sampling.PHASES`.
      x: The latents that enter the step, `k h w c`.
      inputs: What is the same at every step, with the motion of the window, `k h w c`.
      time: The diffusion time.
      bank: The bank at that time, leaves `1 m c`.
      places: Whose attention is looked at.
    """
    recorder = Recorder(places, (x.shape[1], x.shape[2]))
    with nn.intercept_methods(recorder):
        prediction, _ = predict(kind, params, x, None, inputs, jnp.arange(len(x))[None], time, bank)
    return Observation(
        rearrange(prediction, "1 k h w c -> k h w c"), recorder.mixed, recorder.temporal, recorder.residuals
    )
