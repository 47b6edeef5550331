import jax.numpy as jnp
import numpy as np
import pytest

from mafx.errors import InputError
from mafx.models.text import ACTIVATIONS, TextConfig, TextTower, Tokenizer


def test_empty_prompt_needs_no_vocabulary():
    ids = Tokenizer()("")
    assert ids.tolist() == [49406] + [49407] * 76
    with pytest.raises(InputError, match="no vocabulary"):
        Tokenizer()("a person")


def test_small_vocabulary_by_hand():
    """Two merges: "ab" and then the word "ab" as a whole."""
    words = ["a", "b", "c", "a</w>", "b</w>", "c</w>", "ab", "ab</w>", "<|startoftext|>", "<|endoftext|>"]
    vocabulary = "{" + ", ".join(f'"{word}": {i}' for i, word in enumerate(words)) + "}"
    tokenizer = Tokenizer(vocabulary, "#version: 0.2\na b\na b</w>\n", length=6, start=8, end=9)
    assert tokenizer("AB  c").tolist() == [8, 7, 5, 9, 9, 9]
    assert tokenizer("abc").tolist() == [8, 6, 5, 9, 9, 9]
    assert tokenizer("a a a a a a a").tolist() == [8, 3, 3, 3, 3, 9]  # cut, and still ended


def test_attention_is_causal(micro):
    tower, params = TextTower(micro.config.text), {"params": micro.params["text"]}
    ids = jnp.arange(77)[None]
    states, changed = tower.apply(params, ids), tower.apply(params, ids.at[0, 40].set(999))
    np.testing.assert_array_equal(states[:, :40], changed[:, :40])
    assert np.abs(states - changed)[:, 40:].max() > 1e-4


def test_activations():
    assert ACTIVATIONS["quick_gelu"](jnp.float32(1.0)) == pytest.approx(0.8457957, rel=1e-6)
    assert TextConfig().activation == "quick_gelu"
