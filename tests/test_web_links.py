"""Choices and links: what one says, the other gives back."""

import pytest

from mafx.errors import InputError
from mafx.settings import Settings
from mafx.web.links import Choices, from_query, make_choices, to_query


def test_a_link_gives_back_the_choices():
    choices = Choices(model="a & b", size="48x32", frames=24, steps=7, guidance=2.5, sampler="euler", seed=11)
    assert from_query(to_query(choices)) == choices
    assert to_query(choices) == "model=a+%26+b&size=48x32&frames=24&steps=7&guidance=2.5&sampler=euler&seed=11"


def test_defaults_need_no_query():
    assert to_query(Choices()) == "" and from_query("") == Choices()
    assert from_query("utm=1&seed=&steps=4") == Choices(steps=4)


def test_what_is_not_chosen_suits_the_model():
    suited = {"steps": 1, "guidance_scale": 1.0}
    assert Choices().settings(suited) == Settings(steps=1, guidance_scale=1.0)
    assert Choices(steps=3, seed=5).settings(suited) == Settings(steps=3, guidance_scale=1.0, seed=5)
    assert Choices().size_or((32, 48)) == (32, 48) and Choices(size="64").size_or((1, 1)) == (64, 64)


def test_numbers_of_a_form_are_taken_as_what_they_mean():
    assert make_choices({"frames": 8.0, "steps": "3", "guidance": 2, "seed": None}) == Choices(
        frames=8, steps=3, guidance=2.0
    )


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("frames=0", "1 to 256 frames"),
        ("frames=100000", "1 to 256 frames"),
        ("frames=2.5", "expected frames to be a number"),
        ("steps=1e9", "expected steps to be a number"),
        ("steps=101", "at most 100 steps"),
        ("steps=-1", "steps to be at least 1"),
        ("size=64x", "expected a size"),
        ("size=100000", "at most 1024 pixels"),
        ("size=<script>", "expected a size"),
        ("guidance=nan", "guidance_scale to be finite"),
        ("guidance=many", "expected guidance to be a number"),
        ("sampler=best", "sampler to be one of"),
        ("seed=-1", "seed to be at least 0"),
        ("seed=99999999999999999999", "seed to be at least 0 and at most"),
        ("&".join(f"a{i}=1" for i in range(60)), "not readable"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(query, message):
    with pytest.raises(InputError, match=message) as error:
        from_query(query)
    assert "\n" not in str(error.value)
