"""All networks together: the one place where the reference's features y_a and the pose residuals y_p meet the noisy latents z_t.

Which z_t is which (the papers leave it open): the appearance encoder sees the clean reference latent at time t, the ControlNet and the denoising UNet
the noisy latents of the frames; the z of the mixed attention's formula is the hidden state of the block it stands in.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from mafx.models.ablated import TOKENS, GlobalEmbedding, draw_sticks
from mafx.models.attention import PartialBank
from mafx.models.autoencoder import Autoencoder, AutoencoderConfig, Patches, PatchesConfig
from mafx.models.control import ControlNet
from mafx.models.temporal import TemporalConfig
from mafx.models.text import TextConfig, TextTower
from mafx.models.unet import Bank, Decoded, Residuals, UNet, UNetConfig

FUSIONS = ("midup", "full")
APPEARANCES = ("bank", "embedding")
RENDERS = ("densepose", "sticks")


@dataclasses.dataclass(frozen=True)
class AnimatorConfig:
    """Sizes of every network, and what goes where; the first of each kind is as published.

    Attributes:
      fusion: the reference's features are mixed into the middle and up blocks ("midup"), or into the down blocks too ("full").
      appearance: the reference comes as the "features" of the appearance encoder, or as a global "embedding" in the cross-attention.
      renders: the ControlNet sees the "densepose" renders, or "sticks" drawn from them.
    """

    unet: UNetConfig = UNetConfig(temporal=TemporalConfig())
    motion_widths: tuple[int, ...] = (16, 32, 96, 256)
    autoencoder: AutoencoderConfig | PatchesConfig = AutoencoderConfig()
    text: TextConfig = TextConfig()
    fusion: str = FUSIONS[0]
    appearance: str = APPEARANCES[0]
    renders: str = RENDERS[0]

    def __post_init__(self):
        for name, known in (("fusion", FUSIONS), ("appearance", APPEARANCES), ("renders", RENDERS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} {getattr(self, name)!r} is unknown, expected one of {', '.join(known)}")


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
    # Learnt from nothing on 32x32 pictures: patches of 2x2 pixels instead of an autoencoder, positions given, no words.
    "puppets": AnimatorConfig(
        unet=UNetConfig(
            widths=(32, 64, 96),
            attends=(False, True, True),
            layers=1,
            heads=4,
            groups=8,
            channels=12,
            text_width=16,
            positions=True,
            temporal=TemporalConfig(heads=4, groups=8),
        ),
        motion_widths=(16, 32),
        autoencoder=PatchesConfig(factor=2),
        text=TextConfig(width=16, hidden=32, layers=1, heads=2, positions=2, vocabulary=2),
    ),
}


class Half(NamedTuple):
    """What a half of guidance knows: text states `b n c`, and the reference's features, none where it is the unconditional one."""

    text: jax.Array
    bank: Bank


class Animator(nn.Module):
    """Pure functions of parameters and arrays; call them by `apply(..., method="...")`.

    Shapes: latents `b f h w c`, reference latents `b h w c`, times `b`, text states `b n c`, motion `b f H W 3` in [0, 1].
    """

    config: AnimatorConfig

    def setup(self):
        c = self.config
        self.unet = UNet(c.unet)
        still = dataclasses.replace(c.unet, temporal=None)
        self.appearance = (
            UNet(dataclasses.replace(still, bank_only=True)) if c.appearance == "bank" else GlobalEmbedding(still)
        )
        self.control = ControlNet(c.unet, c.motion_widths)
        self.autoencoder = (Patches if isinstance(c.autoencoder, PatchesConfig) else Autoencoder)(c.autoencoder)
        self.text = TextTower(c.text)

    def encode_text(self, ids: jax.Array) -> jax.Array:
        """Token ids `b n` -> text states `b n c`."""
        return self.text(ids)

    def encode_image(self, image: jax.Array) -> jax.Array:
        """Images `b H W 3` in [-1, 1] -> the posterior's mean as scaled latents `b h w c`."""
        return self.autoencoder.encode(image)[0] * self.config.autoencoder.scaling

    def decode_latents(self, latents: jax.Array) -> jax.Array:
        """Scaled latents `b h w c` -> images `b H W 3`, about [-1, 1]."""
        return self.autoencoder.decode(latents / self.config.autoencoder.scaling)

    def bank(self, reference: jax.Array, t: jax.Array, text: jax.Array) -> Bank:
        """y_a: what every mixed attention adds to its keys and values, each `b m c`. Depends on the step only, not on frames.

        Where the reference comes as an embedding, that is all there is: `{"text": {"tokens": b m c}}`.
        """
        if self.config.appearance == "embedding":
            return {"text": {"tokens": self.appearance(reference, t, text)}}
        features = self.appearance.features(reference[:, None], t, text)
        if self.config.fusion == "midup":
            features = {name: blocks for name, blocks in features.items() if not name.startswith("down")}
        return jax.tree.map(lambda y: y[:, 0], features)

    def residuals(
        self,
        noisy: jax.Array,
        t: jax.Array,
        text: jax.Array,
        motion: jax.Array,
        scale: jax.Array | float = 1.0,
        shallow: bool = False,
    ) -> Residuals:
        """y_p: the ControlNet's residuals, times `scale`; `shallow`: of the first level only."""
        motion = draw_sticks(motion) if self.config.renders == "sticks" else motion
        return jax.tree.map(lambda r: r * jnp.asarray(scale, r.dtype), self.control(noisy, t, text, motion, shallow))

    def denoise(
        self,
        noisy: jax.Array,
        t: jax.Array,
        halves: Sequence[Half],
        residuals: Residuals | None,
        deep: Sequence[jax.Array] | None = None,
    ) -> list[Decoded]:
        """The denoiser's answer to each of the halves of guidance (or to one).

        Halves with the same text differ from the first mixed attention on and share the whole encoder: the result is the same, for less work.
        `deep`, of an earlier call, makes this one shallow: see `UNet.encode`.
        """
        shared, shallow, found = {}, deep is not None, []
        for half, its_deep in zip(halves, deep or [None] * len(halves), strict=True):
            text, bank = half
            if self.config.appearance == "embedding":
                text, bank = _with_embedding(text, bank), {}
            apart = self.config.fusion == "full" or self.config.appearance == "embedding"
            encoded = None if apart else shared.get(id(text))
            if encoded is None:
                encoded = shared[id(text)] = self.unet.encode(noisy, t, text, bank if apart else {}, shallow)
            found.append(self.unet.decode(encoded, text, bank, residuals, its_deep))
        return found

    def predict(
        self, noisy: jax.Array, t: jax.Array, text: jax.Array, bank: Bank, residuals: Residuals | None
    ) -> jax.Array:
        """The denoiser's output, `b f h w c`, float32. An empty bank is plain self-attention: the unconditional half of guidance."""
        return self.denoise(noisy, t, [Half(text, bank)], residuals)[0].output

    def predict_both(
        self,
        noisy: jax.Array,
        t: jax.Array,
        text: jax.Array,
        negative: jax.Array | None,
        bank: Bank,
        residuals: Residuals | None,
    ) -> tuple[jax.Array, ...]:
        """Both halves of guidance: without the bank and with it. `negative`: the unconditional half's text states, None where they equal `text`."""
        halves = [Half(text if negative is None else negative, {}), Half(text, bank)]
        return tuple(half.output for half in self.denoise(noisy, t, halves, residuals))

    def __call__(
        self, ids: jax.Array, image: jax.Array, motion: jax.Array, noisy: jax.Array, t: jax.Array
    ) -> jax.Array:
        """Everything once, from pixels to pixels: what defines the parameter tree."""
        text, reference = self.encode_text(ids), self.encode_image(image)
        prediction = self.predict(noisy, t, text, self.bank(reference, t, text), self.residuals(noisy, t, text, motion))
        return self.decode_latents(prediction[:, 0].astype(image.dtype))


def _with_embedding(text: jax.Array, bank: Bank) -> jax.Array:
    """Text states with the reference's tokens behind them, which are zero where there is no reference."""
    tokens = bank["text"]["tokens"] if bank else jnp.zeros((len(text), TOKENS, text.shape[-1]), text.dtype)
    if isinstance(tokens, PartialBank):
        tokens = jnp.where(tokens.keep[:, None, None], tokens.tokens, jnp.zeros((), text.dtype))
    return jnp.concatenate([text, tokens], axis=1)


def parameter_shapes(config: AnimatorConfig) -> dict:
    """The nested tree of parameters as `jax.ShapeDtypeStruct`s (float32), at no cost in memory."""
    h = 2 ** (len(config.unet.widths) - 1)
    H = h * config.autoencoder.factor
    ids, t = jnp.zeros((1, config.text.positions), jnp.int32), jnp.zeros((1,), jnp.int32)
    image, motion, latents = (
        jnp.zeros(shape) for shape in ((1, H, H, 3), (1, 1, H, H, 3), (1, 1, h, h, config.unet.channels))
    )
    return jax.eval_shape(Animator(config).init, jax.random.key(0), ids, image, motion, latents, t)["params"]
