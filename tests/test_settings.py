"""Settings, and the flags that are made from them."""

import argparse
import dataclasses

import pytest

from mafx.errors import InputError
from mafx.settings import Settings, add_setting_flags, setting_flags


def parse(*arguments):
    parser = argparse.ArgumentParser()
    add_setting_flags(parser, {})
    return setting_flags(parser.parse_args(arguments))


def test_every_setting_has_a_flag_and_only_given_ones_are_set():
    assert parse() == {}
    given = parse("--guidance", "2.5", "--no-shared_noise", "--guidance_interval", "0,700", "--plan", "open")
    assert given == {"guidance_scale": 2.5, "shared_noise": False, "guidance_interval": (0, 700), "plan": "open"}
    parser = argparse.ArgumentParser()
    add_setting_flags(parser, {"steps": "; 1 for small models"})
    text = " ".join(parser.format_help().split())
    assert (
        "Number of sampler steps. Each evaluates the networks once per window (default 25; 1 for small models)." in text
    )
    assert sum(
        action.dest in {field.name for field in dataclasses.fields(Settings)} for action in parser._actions
    ) == len(dataclasses.fields(Settings))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"overlap": -1}, "overlap to be at least 0, found -1"),
        ({"eta": 2.0}, "eta to be at least 0 and at most 1, found 2.0"),
        ({"weights": "none"}, "weights to be one of uniform, tapered, found 'none'"),
        ({"guidance_scale": float("nan")}, "guidance_scale to be finite, found nan"),
        ({"control_scale": float("nan")}, "control_scale to be finite, found nan"),
        (
            {"guidance_interval": (700, 0)},
            r"guidance_interval to be two whole times in their order, .*, found \(700, 0\)",
        ),
        ({"steps": 2.5}, "steps to be a whole number, found 2.5"),
        ({"steps": True}, "steps to be a whole number, found True"),
        ({"seed": 2**70}, "seed to be at least 0 and at most 4294967295, found"),
        ({"plan": "x"}, "plan to be one of closed, open, found 'x'"),
        ({"prompt": None}, "prompt to be text, found None"),
        ({"shared_noise": 1}, "shared_noise to be True or False, found 1"),
    ],
)
def test_values_that_cannot_be_meant(change, message):
    with pytest.raises(InputError, match=message):
        Settings(**change)


def test_an_interval_is_two_times():
    with pytest.raises(SystemExit):
        parse("--guidance_interval", "700")


def test_all_settings_are_described():
    lines = Settings.describe().splitlines()
    assert len(lines) == len(dataclasses.fields(Settings))
    assert all(line.endswith(".") for line in lines)
