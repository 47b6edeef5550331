import math

import jax
import numpy as np
import pytest
from micro import example

import mafx
from mafx.data.clips import puppet_clips
from mafx.densepose import FLIPPED, read_labels
from mafx.errors import InputError
from mafx.inspect import parts
from mafx.inspect.parts import FIGURES, Measured, Seen, choose_places, measure_attention, part_shares, summarise
from mafx.inspect.record import Places, token_of

GRID = (4, 4)
# A reference of 4x4 pixels, each a token: head, front torso, right and left hand, both lower legs from behind.
LABELS = np.array([[0, 24, 0, 0], [3, 2, 4, 0], [0, 2, 0, 0], [0, 11, 12, 0]], np.uint8)
TOKENS = {14: [1], 1: [5, 9], 2: [4], 3: [6], 8: [13], 9: [14]}  # of each part


def seen(*at):
    """Places at pixels of LABELS."""
    points = (np.array(at) + 0.5) / 4
    labels = LABELS[tuple(np.array(at).T)]
    return Seen(Places(np.zeros(len(at), int), points), parts.PARTS_OF[labels], np.isin(labels, parts.BACK))


def attend(*tokens):
    """Rows of weights, each even over some tokens."""
    weights = np.zeros((len(tokens), 16))
    for row, chosen in zip(weights, tokens, strict=True):
        row[chosen] = 0.8 / len(chosen)
    return weights


def test_shares_of_parts_by_hand():
    whole = part_shares(LABELS, GRID)
    assert (whole.argmax(1).reshape(4, 4) == parts.PARTS_OF[LABELS]).all() and (whole.max(1) == 1).all()
    halves = part_shares(LABELS, (2, 2))
    assert halves[0, [0, 1, 2, 14]].tolist() == [0.25, 0.25, 0.25, 0.25]


def test_looking_at_one_s_own_part_is_everything():
    places = seen((0, 1), (1, 1), (1, 0), (3, 1))
    shares, by_part = measure_attention(attend(TOKENS[14], TOKENS[1], TOKENS[2], TOKENS[8]), LABELS, places, GRID)
    assert shares["reference"] == pytest.approx(0.8)
    for name in ("person", "part", "part_top", "side", "behind"):
        assert shares[name] == pytest.approx(1), name
    assert shares["person_chance"] == 7 / 16 and shares["side_chance"] == 0.5
    assert shares["part_chance"] == pytest.approx((1 + 2 + 1 + 1) / 4 / 7)
    assert by_part[[13, 0, 1, 7], [13, 0, 1, 7]].tolist() == pytest.approx([1] * 4) and np.isnan(by_part[2]).all()


def test_looking_anywhere_is_chance():
    places = seen((0, 1), (1, 1), (1, 0), (3, 1))
    shares, _ = measure_attention(np.full((4, 16), 1 / 16), LABELS, places, GRID)
    for name in ("person", "part", "side", "behind"):
        assert shares[name] == pytest.approx(shares[f"{name}_chance"]), name


def test_looking_at_the_other_side_and_staying_where_one_is():
    places = seen((1, 0), (3, 2))  # the right hand, the left lower leg from behind
    shares, _ = measure_attention(attend(TOKENS[3], TOKENS[8]), LABELS, places, GRID)
    assert shares["part"] == shares["part_top"] == shares["side"] == shares["behind"] == 0
    assert shares["part_still"] == shares["side_still"] == 1
    moved = Seen(Places(places.places.frames, (np.array([[1, 2], [0, 0]]) + 0.5) / 4), places.parts, places.behind)
    shares, _ = measure_attention(attend(TOKENS[2], TOKENS[9]), LABELS, moved, GRID)
    assert shares["part"] == shares["side"] == 1
    assert shares["side_still"] == pytest.approx((0 + 0.5) / 2)  # the other hand; and no person, which is chance


def test_what_no_place_shows_is_nan():
    shares, _ = measure_attention(attend(TOKENS[14]), LABELS, seen((0, 1)), GRID)
    assert math.isnan(shares["side"]) and math.isnan(shares["behind_top"]) and shares["part"] == pytest.approx(1)


def test_places_are_on_parts_that_the_reference_shows():
    clip = example((32, 32), 8)
    reference, motion = clip.labels[0], clip.labels[1:]
    without_head = np.where(reference >= 23, 0, reference)
    chosen = choose_places(without_head, motion, seed=3)
    pixels = np.floor(chosen.places.points * 32).astype(int)
    labels = motion[chosen.places.frames, pixels[:, 0], pixels[:, 1]]
    assert len(labels) == parts.PLACES and labels.min() > 0 and labels.max() < 23
    assert (parts.PARTS_OF[labels] == chosen.parts).all() and set(chosen.places.frames) == set(range(7))
    assert (np.isin(labels, parts.BACK) == chosen.behind).all()
    with pytest.raises(InputError, match="a body part which the reference shows"):
        choose_places(np.zeros_like(reference), motion, 0)


def test_what_is_seen_from_behind_and_in_pairs_is_densepose_s():
    """Mirrored, a sided part is the other one of its pair, and the back stays the back."""
    sided = np.isin(parts.PARTS_OF, parts.SIDED)
    assert (parts.PARTS_OF[FLIPPED][sided] == parts.PARTS_OF[sided] ^ 1).all()
    assert (parts.PARTS_OF[FLIPPED][~sided] == parts.PARTS_OF[~sided]).all()
    assert set(FLIPPED[parts.BACK]) == set(parts.BACK)


def test_summaries_are_means_with_intervals():
    def measured(value):
        return {"layer": Measured(dict.fromkeys(FIGURES, 0.1) | {"part": value}, np.full((14, 14), value))}

    found = [[measured(0.2), measured(0.4)], [measured(0.5), measured(float("nan"))]]
    mean, low, high = summarise(found)["layer"]["part"]
    assert mean == pytest.approx(0.4) and low == pytest.approx(0.3) and high == pytest.approx(0.5)
    assert summarise(found)["layer"]["part - part_chance"][0] == pytest.approx(0.3)
    assert parts.part_matrix(found, "layer") == pytest.approx((0.2 + 0.4 + 0.5) / 3)
    assert "0.400 [0.300, 0.500]" in parts.report(summarise(found))
    assert parts.matrix_sheet(found).shape[-1] == 3


@pytest.fixture(scope="module")
def measured():
    """Held-out puppets, at the first of three steps."""
    program = mafx.plan(mafx.load_bundled(), mafx.Settings(steps=3, guidance_scale=1.0, window=8), frames=8)
    return parts.measure_clips(program, puppet_clips("test", 6, (64, 64)), [0], stride=8)


def test_puppets_look_at_the_same_part_more_often_than_chance(measured):
    """The best layer of all does so more than whoever stays at the same place of the picture."""
    summary = summarise(measured)
    best = summary["up_blocks_1/attentions_1"]
    _, low, _ = best["part - part_chance"]
    assert low > 0.15 and best["part"][0] > 0.35
    assert best["part_top"][0] > best["part_still"][0]
    assert best["person"][0] > 2 * best["person_chance"][0]
    coarse = summary["mid_block/attentions_0"]
    assert coarse["part - part_chance"][0] < low  # 8x8 tokens tell parts apart worse


def test_attention_that_is_shuffled_is_chance(measured):
    """The same measure of the same people sees nothing where nothing is."""
    clip = puppet_clips("test", 1, (64, 64))[0]
    labels = read_labels(clip.read_motion(np.arange(0, 64, 8)))[0]
    chosen = choose_places(labels[0], labels, 0)
    weights = np.asarray(jax.nn.softmax(8 * jax.random.normal(jax.random.key(0), (len(chosen.parts), 64))))
    shares, _ = measure_attention(weights, labels[0], chosen, (8, 8))
    assert (
        abs(shares["part"] - shares["part_chance"])
        < 0.08
        < summarise(measured)["up_blocks_1/attentions_1"]["part - part_chance"][0]
    )
    assert len(token_of(chosen.places.points, (8, 8))) == len(weights)
