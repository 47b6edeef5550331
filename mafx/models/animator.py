"""All networks together: the one place where the bank y_a and the residuals y_p meet the noisy latents z_t.

The papers leave open which z_t is which. The appearance encoder sees the clean reference latent at time t. The
ControlNet and the denoising UNet see the noisy latents of the frames. The z in the formula of mixed attention is the
hidden state of the block that it stands in.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from mafx.models.ablated import GlobalEmbedding, append_embedding, draw_sticks, embedding_bank
from mafx.models.autoencoder import Autoencoder, AutoencoderConfig, Patches, PatchesConfig
from mafx.models.control import ControlNet
from mafx.models.kernels import Kernels
from mafx.models.temporal import TemporalConfig
from mafx.models.text import TextConfig, TextTower
from mafx.models.unet import Bank, Decoded, Residuals, UNet, UNetConfig
from mafx.trees import Flat, flatten, unflatten

# The first of each is as published, the others are ablations.
FUSIONS = ("midup", "full")
APPEARANCES = ("bank", "embedding")
RENDERS = ("densepose", "sticks")
FRAMES = ("ordered", "set")


@dataclasses.dataclass(frozen=True)
class AnimatorConfig:
    """Sizes of every network, and what goes where.

    Attributes:
      unet: Sizes of the denoising UNet, of which appearance encoder and ControlNet are copies.
      motion_widths: Channels of the ControlNet's embedding of the motion.
      autoencoder: Sizes of the first stage.
      text: Sizes of the text tower.
      fusion: Whether the bank is mixed into the middle and up blocks ("midup"), or into the down blocks too ("full").
      appearance: Whether the reference comes as the "bank" of an appearance encoder, or as a global "embedding" in the
        cross-attention.
      renders: Whether the ControlNet sees the "densepose" renders, or "sticks" drawn from them.
      frames: Whether temporal attention sees frames that are "ordered" by a sinusoid of their numbers, or a "set".

    Raises:
      ValueError: For an unknown choice.
    """

    unet: UNetConfig = UNetConfig(temporal=TemporalConfig())
    motion_widths: tuple[int, ...] = (16, 32, 96, 256)
    autoencoder: AutoencoderConfig | PatchesConfig = AutoencoderConfig()
    text: TextConfig = TextConfig()
    fusion: str = FUSIONS[0]
    appearance: str = APPEARANCES[0]
    renders: str = RENDERS[0]
    frames: str = FRAMES[0]

    def __post_init__(self):
        known = {"fusion": FUSIONS, "appearance": APPEARANCES, "renders": RENDERS, "frames": FRAMES}
        for name, choices in known.items():
            if getattr(self, name) not in choices:
                expected = ", ".join(choices)
                raise ValueError(f"{name} {getattr(self, name)!r} is unknown, expected one of {expected}")

    @property
    def encoder_sees_reference(self) -> bool:
        """Whether the UNet's down path depends on the reference: if not, the halves of guidance can share it."""
        return self.fusion == "full" or self.appearance == "embedding"

    def with_kernels(self, kernels: Kernels) -> "AnimatorConfig":
        """The same networks, for other hardware."""
        config = dataclasses.replace(self, unet=dataclasses.replace(self.unet, kernels=kernels))
        if isinstance(self.autoencoder, PatchesConfig):
            return config
        return dataclasses.replace(config, autoencoder=dataclasses.replace(self.autoencoder, kernels=kernels))

    def without_temporal_layers(self) -> "AnimatorConfig":
        """The networks for single frames, as the appearance stage trains them."""
        return dataclasses.replace(self, unet=dataclasses.replace(self.unet, temporal=None))


SIZES = {
    "sd15": AnimatorConfig(),
    "half": AnimatorConfig(
        unet=UNetConfig(widths=(160, 320, 640, 640), temporal=TemporalConfig()),
        autoencoder=AutoencoderConfig(widths=(64, 128, 256, 256)),
    ),
    "tiny": AnimatorConfig(
        unet=UNetConfig(widths=(32, 32, 32, 64), groups=8, text_width=32, temporal=TemporalConfig()),
        motion_widths=(16, 32, 48, 64),
        autoencoder=AutoencoderConfig(widths=(8, 16, 16, 16), groups=8),
        text=TextConfig(width=32, hidden=64, layers=2, heads=4),
    ),
    # Learns from nothing on 64x64 pictures: patches of 4x4 pixels instead of an autoencoder, positions given, no words.
    "puppets": AnimatorConfig(
        unet=UNetConfig(
            widths=(64, 96),
            attends=(True, True),
            layers=1,
            heads=2,
            groups=8,
            channels=48,
            text_width=16,
            positions=True,
            temporal=TemporalConfig(heads=4, groups=8),
        ),
        motion_widths=(16, 32, 64),
        autoencoder=PatchesConfig(factor=4),
        text=TextConfig(width=16, hidden=32, layers=1, heads=2, positions=2, vocabulary=2),
    ),
}


class Half(NamedTuple):
    """What one half of guidance knows: text states `b n c`, and the bank, which is empty in the unconditional half."""

    text: jax.Array
    bank: Bank


def _in_range(function: Callable[[jax.Array], Any], x: jax.Array) -> Any:
    """Half of the autoencoder, computed in float32 where x and the parameters are float16.

    Its residual sums grow from block to block, and may pass 65504, where float16 ends.
    """
    if x.dtype != jnp.float16:
        return function(x)
    with jax.numpy_dtype_promotion("standard"):  # of the parameters
        return function(x.astype(jnp.float32))


class Animator(nn.Module):
    """Pure functions of parameters and arrays; call them by `apply(..., method="...")`.

    Shapes: latents `b f h w c`, reference latents `b h w c`, times `b`, text states `b n c`, motion `b f H W 3` in
    [0, 1].
    """

    config: AnimatorConfig

    def setup(self):
        c = self.config
        image_unet = dataclasses.replace(c.unet, temporal=None)
        ordered = c.frames == FRAMES[0]
        temporal = None if c.unet.temporal is None else dataclasses.replace(c.unet.temporal, ordered=ordered)
        self.unet = UNet(dataclasses.replace(c.unet, temporal=temporal))
        if c.appearance == "embedding":
            self.appearance: nn.Module = GlobalEmbedding(image_unet)
        else:
            self.appearance = UNet(dataclasses.replace(image_unet, bank_only=True))
        self.control = ControlNet(c.unet, c.motion_widths)
        if isinstance(c.autoencoder, PatchesConfig):
            self.autoencoder: Patches | Autoencoder = Patches(c.autoencoder)
        else:
            self.autoencoder = Autoencoder(c.autoencoder)
        self.text = TextTower(c.text)

    def encode_text(self, ids: jax.Array) -> jax.Array:
        """Token ids `b n` to text states `b n c`."""
        return self.text(ids)

    def encode_image(self, image: jax.Array) -> jax.Array:
        """Images `b H W 3` in [-1, 1] to scaled latents `b h w c`: the posterior's mean."""
        mean, _ = _in_range(self.autoencoder.encode, image)
        return (mean * self.config.autoencoder.scaling).astype(image.dtype)

    def decode_latents(self, latents: jax.Array) -> jax.Array:
        """Scaled latents `b h w c` to images `b H W 3`, about in [-1, 1]."""
        latents = latents / self.config.autoencoder.scaling
        return _in_range(self.autoencoder.decode, latents).astype(latents.dtype)

    def bank(self, reference: jax.Array, t: jax.Array, text: jax.Array) -> Bank:
        """y_a: what every mixed attention adds to its keys and values, each `b m c`. It depends on t, not on frames."""
        if self.config.appearance == "embedding":
            return embedding_bank(self.appearance(reference, t, text))
        bank = self.appearance.write_bank(reference[:, None], t, text)
        if self.config.fusion == "midup":
            bank = {block: tokens for block, tokens in bank.items() if not block.startswith("down")}
        return jax.tree.map(lambda tokens: tokens[:, 0], bank)

    def residuals(
        self,
        noisy: jax.Array,
        t: jax.Array,
        text: jax.Array,
        motion: jax.Array,
        scale: jax.Array | float = 1.0,
        shallow: bool = False,
    ) -> Residuals:
        """y_p: the ControlNet's residuals times `scale`. `shallow` computes those of the first level only."""
        return self.residuals_from_embedded(noisy, t, text, self.embed_motion(motion), scale, shallow)

    def embed_motion(self, motion: jax.Array) -> jax.Array:
        """What the ControlNet sees of a motion, `b f h w c`: the same at all times."""
        if self.config.renders == "sticks":
            motion = draw_sticks(motion)
        return self.control.embed_motion(motion)

    def residuals_from_embedded(
        self,
        noisy: jax.Array,
        t: jax.Array,
        text: jax.Array,
        embedded: jax.Array,
        scale: jax.Array | float = 1.0,
        shallow: bool = False,
    ) -> Residuals:
        """As `residuals`, of a motion that is embedded already."""
        residuals = self.control(noisy, t, text, embedded, shallow)
        return jax.tree.map(lambda r: r * jnp.asarray(scale, r.dtype), residuals)

    def denoise(
        self,
        noisy: jax.Array,
        t: jax.Array,
        halves: Sequence[Half],
        residuals: Residuals | None,
        *,
        same_text: bool = False,
        deep: Sequence[jax.Array] | None = None,
    ) -> list[Decoded]:
        """Run the denoising UNet once per half of guidance.

        Args:
          noisy: Noisy latents z_t.
          t: Diffusion times.
          halves: One or two; a half with an empty bank does plain self-attention.
          residuals: y_p, or None.
          same_text: Whether all halves have the same text. Then they differ from the first mixed attention on, and
            share the down path: the result is the same, for less work.
          deep: The inputs of the last level at an earlier step, one per half. Then only the first and the last level
            are computed, see `UNet.encode`.
        """
        shares_encoder = same_text and not self.config.encoder_sees_reference
        decoded: list[Decoded] = []
        encoded = None
        for half, half_deep in zip(halves, deep or (None,) * len(halves), strict=True):
            text, bank = half
            if self.config.appearance == "embedding":
                text, bank = append_embedding(text, bank), {}
            if encoded is None or not shares_encoder:
                encoded = self.unet.encode(noisy, t, text, bank, deep is not None)
            decoded.append(self.unet.decode(encoded, text, bank, residuals, half_deep))
        return decoded

    def predict(
        self, noisy: jax.Array, t: jax.Array, text: jax.Array, bank: Bank, residuals: Residuals | None
    ) -> jax.Array:
        """The prediction of one half, `b f h w c`, float32."""
        return self.denoise(noisy, t, [Half(text, bank)], residuals)[0].output

    def predict_both(
        self,
        noisy: jax.Array,
        t: jax.Array,
        text: jax.Array,
        negative: jax.Array | None,
        bank: Bank,
        residuals: Residuals | None,
    ) -> tuple[jax.Array, jax.Array]:
        """The predictions of both halves, unconditional first, each `b f h w c`, float32.

        `negative` is the unconditional half's text, None where it equals `text`.
        """
        halves = [Half(text if negative is None else negative, {}), Half(text, bank)]
        unconditional, conditional = self.denoise(noisy, t, halves, residuals, same_text=negative is None)
        return unconditional.output, conditional.output

    def __call__(
        self, ids: jax.Array, image: jax.Array, motion: jax.Array, noisy: jax.Array, t: jax.Array
    ) -> jax.Array:
        """Everything once, from pixels to pixels: this defines the tree of parameters."""
        text, reference = self.encode_text(ids), self.encode_image(image)
        bank, residuals = self.bank(reference, t, text), self.residuals(noisy, t, text, motion)
        prediction = self.predict(noisy, t, text, bank, residuals)
        return self.decode_latents(prediction[:, 0].astype(image.dtype))


def check_sizes(config: AnimatorConfig) -> None:
    """Check what the sizes of the networks must have in common, at no cost: no network is built.

    Raises:
      ValueError: One network could not be built, or would not fit another.
    """
    unet, temporal, autoencoder, text = config.unet, config.unet.temporal, config.autoencoder, config.text
    _demand(len(unet.attends) == len(unet.widths), f"{len(unet.widths)} widths and {len(unet.attends)} kinds of blocks")
    _demand_multiples("widths of the UNet", unet.widths, {"groups": unet.groups, "heads": unet.heads, "2": 2})
    if temporal is not None:
        multiples = {"groups of the temporal layers": temporal.groups, "heads of the temporal layers": temporal.heads}
        _demand_multiples("widths of the UNet", unet.widths, multiples)
    _demand_multiples("width of the text tower", (text.width,), {"heads": text.heads})
    _demand(text.width == unet.text_width, f"text states of {text.width} and of {unet.text_width} channels")
    if isinstance(autoencoder, AutoencoderConfig):
        _demand_multiples("widths of the autoencoder", autoencoder.widths, {"groups": autoencoder.groups})
    fitting = autoencoder.channels == unet.channels
    _demand(fitting, f"latents of {autoencoder.channels} channels, and a UNet for {unet.channels}")
    factor = 2 ** (len(config.motion_widths) - 1)
    _demand(factor == autoencoder.factor, f"a motion reduced {factor} times, and latents {autoencoder.factor} times")


def _demand(fits: bool, found: str) -> None:
    if not fits:
        raise ValueError(f"expected sizes that fit one another, found {found}")


def _demand_multiples(what: str, widths: Sequence[int], divisors: dict[str, int]) -> None:
    for name, divisor in divisors.items():
        _demand(all(width % divisor == 0 for width in widths), f"{what} {widths} that {divisor} ({name}) do not divide")


def parameter_shapes(config: AnimatorConfig) -> dict:
    """The nested tree of parameters as float32 `jax.ShapeDtypeStruct`s, at no cost in memory."""
    return unflatten(_flat_shapes(config))


@functools.cache  # tracing networks of full size takes seconds
def _flat_shapes(config: AnimatorConfig) -> Flat:
    h = 2 ** (len(config.unet.widths) - 1)
    H = h * config.autoencoder.factor
    ids, t = jnp.zeros((1, config.text.positions), jnp.int32), jnp.zeros((1,), jnp.int32)
    image, motion = jnp.zeros((1, H, H, 3)), jnp.zeros((1, 1, H, H, 3))
    latents = jnp.zeros((1, 1, h, h, config.unet.channels))
    return flatten(jax.eval_shape(Animator(config).init, jax.random.key(0), ids, image, motion, latents, t)["params"])
