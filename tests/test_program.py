"""An animation as a value: its parts, their costs, and what they say before anything runs."""

import dataclasses

import jax
import numpy as np
import pytest
from micro import MICRO, example

import mafx
from mafx.errors import InputError
from mafx.model import abstract_model
from mafx.models.animator import SIZES
from mafx.models.kernels import Kernels


@pytest.fixture(scope="module")
def program():
    settings = mafx.Settings(steps=10, window=4, overlap=1, guidance_interval=(300, 1000), prompt="", reuse=1)
    return mafx.plan(abstract_model(MICRO, "float32"), settings, (16, 24), 9)


def test_parts_are_what_an_animation_calls_and_how_often(program):
    runs = {part.name: part.runs for part in program.parts()}
    batches = len(program.windows)  # one window at once
    guided = sum(time >= 300 for time in program.table.times)
    assert runs == {
        "text": 1,
        "motion": 1,
        "reference": 1,
        "banks": 2,  # ten steps, at most eight at once
        "steps": guided * batches,
        "steps, conditional only": (10 - guided) * batches,
        "decoding": 9,
    }


def test_costs_are_those_of_the_compiled_parts(program):
    costs = {cost.name: cost for cost in program.costs()}
    assert costs["steps, conditional only"].flops < 0.8 * costs["steps"].flops
    bytes_of_params = sum(
        4 * x.size for x in jax.tree.leaves({k: program.model.params[k] for k in ("unet", "control")})
    )
    assert bytes_of_params < costs["steps"].argument_bytes < 1.2 * bytes_of_params
    assert all(cost.temporary_bytes > 0 for name, cost in costs.items() if name != "text")


def test_a_program_is_planned_for_kernels_that_are_not_here():
    """Attention holds all scores where the limit allows it, whatever machine traces."""

    def checkpoints(kernels):
        program = mafx.plan(abstract_model(MICRO.with_kernels(kernels), "float32"), size=(16, 16))
        part = next(part for part in program.parts() if part.name == "steps")
        return str(part.function.trace(*part.arguments).jaxpr).count("remat")

    assert checkpoints(Kernels(plain_score_bytes=0)) > checkpoints(Kernels(plain_score_bytes=2**40)) == 0


def test_running_checks_the_shapes(program):
    picture, motion = np.zeros((16, 24, 3), np.uint8), np.zeros((9, 16, 24, 3), np.uint8)
    cases = {
        r"a reference of the shape \[16, 24, 3\], found \[8, 24, 3\]": (picture[:8], motion),
        r"a motion of the shape \[9, 16, 24, 3\], found \[5, 16, 24, 3\]": (picture, motion[:5]),
    }
    for message, (reference, frames) in cases.items():
        with pytest.raises(InputError, match=f"expected {message}"):
            program.run(reference, frames)


def test_what_was_seen_once_moves_as_in_a_run_of_its_own(micro):
    clip = example((16, 16), 3)
    program = mafx.plan(micro, mafx.Settings(steps=10, window=2, overlap=1, seed=3), (16, 16), 3)
    appearance = program.see(clip.reference)
    assert len(appearance.banks) == 2  # ten steps, at most eight at once
    for motion in (clip.motion, clip.motion[::-1]):
        expected = program.run(clip.reference, motion, progress=False).video
        np.testing.assert_array_equal(program.move(appearance, motion), expected)
    with pytest.raises(InputError, match=r"expected a motion of the shape \[3, 16, 16, 3\]"):
        program.move(appearance, clip.motion[:1])


def test_full_size_is_planned_without_memory():
    program = mafx.plan(abstract_model(SIZES["sd15"], "bfloat16"), mafx.Settings(), (512, 768), 40)
    assert (program.padded, program.capacity, len(program.windows)) == (48, 64, 4)
    names = [part.name for part in program.parts()]
    assert names == ["text", "reference", "motion", "banks", "steps", "decoding"]
    (banks,) = [part for part in program.parts() if part.name == "banks"]
    assert banks.runs == 4  # 25 steps as four times seven


def test_numbers_that_are_none_are_no_video(micro):
    broken = dict(micro.params, autoencoder=jax.tree.map(lambda x: x * np.float32(np.nan), micro.params["autoencoder"]))
    clip = example((16, 16), 2)
    with pytest.raises(FloatingPointError, match="not finite in float32; take another dtype or checkpoint"):
        mafx.animate(
            dataclasses.replace(micro, params=broken), clip.reference, clip.motion, steps=1, window=2, overlap=0
        )


@pytest.mark.parametrize(("settings", "warns"), [({}, True), ({"steps": 2}, False), ({"sampler": "euler"}, False)])
def test_one_published_step_begins_where_there_is_no_noise(caplog, settings, warns):
    mafx.plan(abstract_model(MICRO, "float32"), mafx.Settings(**{"steps": 1} | settings), (16, 16), 4)
    assert ("begins at time 1 of 1000" in caplog.text) == warns
