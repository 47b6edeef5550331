"""CLIP's text tower and its tokenizer: from a prompt to 77 states for cross-attention.

Source: *Learning Transferable Visual Models From Natural Language Supervision* (arXiv 2103.00020), as in Stable
Diffusion 1.5's `text_encoder`.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from einops import rearrange
from flax import linen as nn
from tokenizers import Regex, models, normalizers, pre_tokenizers

from mafx.errors import InputError, refusals
from mafx.files import Range, parse_json, read_text
from mafx.models.layers import LayerNorm

START, END = "<|startoftext|>", "<|endoftext|>"  # CLIP's words around a prompt


def quick_gelu(x: jax.Array) -> jax.Array:
    """CLIP's approximation of the GELU."""
    return x * nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "quick_gelu": quick_gelu,
    "gelu": functools.partial(nn.gelu, approximate=False),
}


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Sizes of the text tower; the defaults are CLIP ViT-L/14's."""

    width: int = 768
    hidden: int = 3072
    layers: int = 12
    heads: int = 12
    positions: int = 77
    vocabulary: int = 49408
    activation: str = "quick_gelu"
    eps: float = 1e-5


class _SelfAttention(nn.Module):
    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = x.shape[-1]
        projections = (nn.Dense(c, name=name)(x) for name in ("q_proj", "k_proj", "v_proj"))
        q, k, v = (rearrange(y, "b n (a d) -> b n a d", a=self.heads) for y in projections)
        scores = jnp.einsum("bnad,bkad->bank", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
        causal = jnp.tril(jnp.ones((1, 1, *scores.shape[2:]), bool))
        weights = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf), axis=-1).astype(v.dtype)
        y = jnp.einsum("bank,bkad->bnad", weights, v)
        return nn.Dense(c, name="out_proj")(rearrange(y, "b n a d -> b n (a d)"))


class _Layer(nn.Module):
    config: TextConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        x = x + _SelfAttention(c.heads, name="self_attn")(LayerNorm(c.eps, name="layer_norm1")(x))
        y = nn.Dense(c.hidden, name="mlp_fc1")(LayerNorm(c.eps, name="layer_norm2")(x))
        return x + nn.Dense(c.width, name="mlp_fc2")(ACTIVATIONS[c.activation](y))


class TextTower(nn.Module):
    """Token ids `b n` to states `b n c`, after the final norm.

    Attention is causal. Padding is not masked, as published.
    """

    config: TextConfig

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        c = self.config
        x = nn.Embed(c.vocabulary, c.width, name="token_embedding")(ids)
        x = x + nn.Embed(c.positions, c.width, name="position_embedding")(jnp.arange(ids.shape[1])[None])
        for i in range(c.layers):
            x = _Layer(c, name=f"layers_{i}")(x)
        return LayerNorm(c.eps, name="final_layer_norm")(x)


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Byte-pair encoding of prompts, padded and cut to `length` ids.

    Without a vocabulary (in a model trained from nothing) only the empty prompt can be encoded, which needs none.

    Attributes:
      vocabulary: The text of CLIP's `vocab.json`.
      merges: The text of CLIP's `merges.txt`.
      length: Number of ids.
      start: Id before the prompt.
      end: Id after the prompt, and of the padding.
    """

    vocabulary: str | None = None
    merges: str | None = None
    length: int = 77
    start: int = 49406
    end: int = 49407

    @classmethod
    def without_vocabulary(cls, size: int, length: int) -> "Tokenizer":
        """A tokenizer of the empty prompt, for a text tower of `size` embeddings: only the last two are ever used."""
        return cls(length=length, start=size - 2, end=size - 1)

    @classmethod
    def from_directory(cls, directory: Path, config: TextConfig) -> "Tokenizer":
        """Read `vocab.json` and `merges.txt` for a text tower of these sizes.

        Raises:
          InputError: One of them is missing, is none, or has ids that the tower has no embedding for.
        """
        vocabulary, merges = (read_text(directory / name) for name in ("vocab.json", "merges.txt"))
        with refusals(f"{directory} holds no vocabulary that can be read"):
            ids = _byte_pair_encoder(vocabulary, merges).get_vocab()
            largest = max(ids.values())
            if largest >= config.vocabulary:
                raise ValueError(f"expected ids below {config.vocabulary}, found {largest}")
            return cls(vocabulary, merges, config.positions, ids[START], ids[END])

    def __call__(self, prompt: str) -> np.ndarray:
        """Encode a prompt as int32 `n`: the start, the prompt's ids, the end, padding.

        Raises:
          InputError: For a prompt that is not empty, without a vocabulary.
        """
        ids = self._encode(prompt)[: self.length - 2] if prompt else []
        return np.array([self.start, *ids, *[self.end] * (self.length - 1 - len(ids))], np.int32)

    def _encode(self, prompt: str) -> list[int]:
        if self.vocabulary is None or self.merges is None:
            raise InputError(
                f"this model has no vocabulary, so the prompt must be empty, not {prompt!r}; "
                "add tokenizer/vocab.json and tokenizer/merges.txt to the weights"
            )
        return _byte_pair_encoder(self.vocabulary, self.merges).encode(prompt, add_special_tokens=False).ids


@functools.lru_cache(maxsize=2)  # all prompts of a model have one vocabulary
def _byte_pair_encoder(vocabulary: str, merges: str) -> tokenizers.Tokenizer:
    """CLIP's pipeline: clean and lower the text, split it into words, encode their bytes; `</w>` ends a word.

    Raises:
      InputError: These are no vocabulary and no merges.
    """
    ids = parse_json(vocabulary, "vocab.json", dict[str, Annotated[int, Range(0, 2**31)]])
    if missing := {START, END} - ids.keys():
        raise InputError(f"vocab.json lacks {' and '.join(sorted(missing))}")
    lines = [line for line in merges.splitlines() if line and not line.startswith("#version")]
    with refusals("expected two words in each line of merges.txt, and both and their union in vocab.json"):
        pairs = [(first, second) for first, second in map(str.split, lines)]
        encoder = tokenizers.Tokenizer(models.BPE(ids, pairs, end_of_word_suffix="</w>", unk_token=END, fuse_unk=False))
    encoder.normalizer = normalizers.Sequence(
        [
            normalizers.BertNormalizer(clean_text=True, handle_chinese_chars=True, strip_accents=False, lowercase=True),
            normalizers.NFC(),
        ]
    )
    words = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
    encoder.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    encoder.add_special_tokens([START, END])
    return encoder
