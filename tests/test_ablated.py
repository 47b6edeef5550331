import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import compiled, normal
from micro import MICRO, example

from mafx import save_pretrained
from mafx.densepose import FLIPPED, draw_labels
from mafx.errors import InputError
from mafx.model import random_model
from mafx.models.ablated import STICKS, draw_sticks
from mafx.models.animator import FRAMES
from mafx.models.attention import PartialBank


def sticks(labels):
    return np.asarray(draw_sticks(jnp.asarray(draw_labels(labels)[None], jnp.float32) / 255)[0])


def test_stick_figures_keep_the_skeleton_and_nothing_else():
    labels = example((64, 64), 1, 3, 3).labels
    picture = sticks(labels)
    drawn = picture.max(-1) > 0
    assert 0.005 < drawn.mean() < 0.4 * (labels > 0).mean()
    assert len(np.unique(picture[drawn], axis=0)) > len(STICKS) // 2
    turned = np.arange(25)  # fronts become backs and the other way round
    for back, front in ((1, 2), (7, 9), (8, 10), (11, 13), (12, 14), (15, 17), (16, 18), (19, 21), (20, 22), (23, 24)):
        turned[[back, front]] = front, back
    np.testing.assert_array_equal(sticks(turned[labels]), picture)
    assert (sticks(FLIPPED[labels]) != picture).any(), "left and right have colours of their own"


def test_no_stick_leads_to_what_is_not_seen():
    labels = np.zeros((1, 32, 32), np.uint8)
    labels[0, 4:8, 14:18], labels[0, 12:20, 12:20] = 23, 2
    picture = sticks(labels)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) == 2  # black, and from torso to head
    assert picture[0, 8:12, 15:17].any() and not picture[0, 24:].any()


@pytest.fixture(scope="module")
def embedding():
    return random_model(dataclasses.replace(MICRO, appearance="embedding"), seed=1)


def test_the_embedding_is_dropped_like_a_bank(embedding, rng):
    """An example without the reference answers as the unconditional half of guidance; one with it does not."""
    draw = functools.partial(normal, rng)
    assert not any(
        "decoder" in "/".join(k.key for k in path)
        for path, _ in jax.tree_util.tree_leaves_with_path(embedding.params["appearance"])
    )
    noisy, t, text, reference = draw(2, 1, 4, 4, 4), jnp.array([5, 9]), draw(2, 3, 16), draw(2, 4, 4, 4)
    apply = compiled(embedding.networks, embedding.params)
    bank = apply("bank", reference, t, text)
    partial = jax.tree.map(lambda y: PartialBank(y, jnp.array([True, False])), bank)
    without, both, mixed = (apply("predict", noisy, t, text, x, None) for x in ({}, bank, partial))
    np.testing.assert_allclose(mixed[0], both[0], atol=1e-5)
    np.testing.assert_allclose(mixed[1], without[1], atol=1e-5)
    assert np.abs(both - without).max() > 1e-2
    for half, expected in zip(apply("predict_both", noisy, t, text, None, bank, None), (without, both), strict=True):
        np.testing.assert_allclose(half, expected, atol=1e-5)
    elsewhere = apply("bank", jnp.roll(reference, 2, axis=(1, 2)), t, text)["text"]["tokens"]
    assert elsewhere.shape == bank["text"]["tokens"].shape == (2, 16, 16)


@pytest.mark.parametrize(
    ("name", "published", "other"),
    [("appearance", "bank", "embedding"), ("renders", "densepose", "sticks"), ("frames", "ordered", "set")],
)
def test_the_published_layout_has_no_place_for_it(name, published, other, tmp_path):
    model = random_model(dataclasses.replace(MICRO, **{name: other}))
    with pytest.raises(InputError, match=f"expected a model with networks.{name} '{published}', found '{other}'"):
        save_pretrained(model, tmp_path / "out")


def test_a_set_of_frames_has_no_order(rng):
    """Shuffled frames give shuffled answers; of ordered frames, others."""
    noisy, t, text = normal(rng, 1, 3, 4, 4, 4), jnp.array([9]), normal(rng, 1, 3, 16)
    differences = {}
    for frames in FRAMES:
        model = random_model(dataclasses.replace(MICRO, frames=frames), seed=1)
        apply = compiled(model.networks, model.params)
        shuffled = apply("predict", noisy[:, ::-1], t, text, {}, None)[:, ::-1]
        differences[frames] = np.abs(shuffled - apply("predict", noisy, t, text, {}, None)).max()
    assert differences["set"] < 1e-4 and differences["ordered"] > 1e-2
