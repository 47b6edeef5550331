"""Networks that take turns on a device. CPU devices stand in for cards, and NumPy arrays for what waits on the host."""

import dataclasses
import weakref
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from micro import example

import mafx
from mafx import program as program_module
from mafx.budget import GIB, POOL_SHARE, Need, fit_networks, usable_bytes
from mafx.commands import CARD_SHARE
from mafx.compiling import jit
from mafx.errors import InputError
from mafx.placing import DeviceNetworks, bytes_of
from mafx.sampling import PHASES

MIB = 2**20
SETTINGS = {"steps": 10, "window": 4, "overlap": 1}  # ten steps are two calls of the appearance encoder
PHASE_OF = {
    "encode_text": "text",
    "encode_image": "reference",
    "embed_motion": "motion",
    "write_banks": "banks",
    "run_steps": "steps",
    "decode": "decoding",
}


@pytest.fixture
def waiting(micro):
    """A model whose parameters wait on the host, and that was never animated."""
    return dataclasses.replace(micro, params=jax.tree.map(np.asarray, micro.params))


def animate(model, **settings):
    clip = example((16, 16), 11)
    settings = SETTINGS | {"progress": False} | settings
    return mafx.animate(model, clip.reference, clip.motion[:6], **settings)


def micro_program(model, **options):
    return mafx.plan(model, mafx.Settings(**SETTINGS), (16, 16), 6, **options)


def least_memory(program):
    """GiB of the smallest card that an animation fits."""
    weights = {name: bytes_of(tree) for name, tree in program.model.params.items()}
    peak = max(need.working + sum(weights.get(name, 0) for name in need.networks) for need in program.needs())
    return (peak + 1) / GIB / CARD_SHARE / POOL_SHARE


@pytest.fixture
def present(monkeypatch):
    """Grows by a phase and the networks whose arrays are alive on the device, at each call of a phase's function."""
    placed, calls = {}, []
    fetch = DeviceNetworks.fetch

    def noted(self, *args):
        networks = fetch(self, *args)
        placed.update({name: [weakref.ref(x) for x in jax.tree.leaves(tree)] for name, tree in networks.items()})
        return networks

    def watched(function, *args):
        alive = {name for name, arrays in placed.items() if any(array() is not None for array in arrays)}
        calls.append((PHASE_OF[function.__name__], alive))
        return call(function, *args)

    call = jit.__call__
    monkeypatch.setattr(DeviceNetworks, "fetch", noted)
    monkeypatch.setattr(jit, "__call__", watched)
    return calls


def test_on_the_smallest_card_networks_take_turns_for_the_same_video(micro, waiting, present):
    memory = least_memory(micro_program(waiting))
    present.clear()
    taking_turns = animate(waiting, memory=memory)
    order = [phase for phase, _ in present]
    assert order == ["text", "reference", "motion", "banks", "banks", "steps", "steps", *["decoding"] * 6]
    largest = max(bytes_of(tree) for tree in waiting.params.values())
    assert bytes_of(waiting.params) > memory * GIB > largest
    for phase, networks in present:
        assert networks >= set(PHASES[phase])
        assert sum(bytes_of(waiting.params[name]) for name in networks) < memory * GIB
    everything = animate(micro)
    np.testing.assert_array_equal(taking_turns.video, everything.video)
    np.testing.assert_array_equal(taking_turns.latents, everything.latents)


def test_the_bundled_model_takes_turns_for_the_same_video():
    """Patches instead of an autoencoder: two phases have no parameters."""
    bundled = mafx.load_bundled("bfloat16")
    waiting = dataclasses.replace(bundled, params=jax.tree.map(np.asarray, bundled.params))
    clip = example((32, 32), 4)
    settings = {"steps": 9, "window": 4, "overlap": 1, "reuse": 2}
    memory = least_memory(mafx.plan(waiting, mafx.Settings(**settings), (32, 32), 4))
    assert not mafx.plan(waiting, mafx.Settings(**settings), (32, 32), 4, memory=memory).fit().together
    taking_turns, everything = (
        mafx.animate(model, clip.reference, clip.motion, memory=limit, progress=False, **settings).video
        for model, limit in ((waiting, memory), (bundled, None))
    )
    np.testing.assert_array_equal(taking_turns, everything)


def test_networks_leave_only_for_others(waiting, present):
    """All fit beside the text phase, but not beside the steps: only the text network leaves, which is needed last."""
    everything = bytes_of(waiting.params)
    memory = (everything + MIB / 2) / GIB / CARD_SHARE / POOL_SHARE
    networks, text = waiting.on_device(None), bytes_of(waiting.params["text"])
    animate(waiting, memory=2 * memory)
    assert present[-1] == ("decoding", set(waiting.params)) and networks.moved.bytes == everything
    for moved in (everything, everything + text):
        present.clear()
        animate(waiting, memory=memory)
        assert dict(present)["text"] == set(waiting.params)
        assert dict(present)["steps"] == dict(present)["decoding"] == set(waiting.params) - {"text"}
        assert networks.moved.bytes == moved


def test_a_card_that_is_too_small_is_told_before_anything_moves(waiting):
    with pytest.raises(InputError, match=r"^steps: expected 0\.0 GiB .* that may be used; take a smaller size"):
        animate(waiting, memory=0.5 * least_memory(micro_program(waiting)))
    assert waiting.on_device(None).bytes == 0


def test_a_size_that_fits_a_smaller_card_is_found_by_compiling(waiting):
    large = dataclasses.replace(micro_program(waiting), size=(32, 32))
    memory = 0.99 * least_memory(large)
    with pytest.raises(InputError, match=r"may be used; 24x24 fits, with 0\.0 GiB$"):
        dataclasses.replace(large, memory=memory).fit()
    assert dataclasses.replace(large, memory=memory, size=(24, 24)).fit().peak > 0


@pytest.fixture
def full(monkeypatch):
    """Whoever runs a step finds the device full."""

    def fails(function, *args):
        if function.__name__ == "run_steps":
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 7.0GiB")
        return call(function, *args)

    call = jit.__call__
    monkeypatch.setattr(jit, "__call__", fails)


def run_large(model):
    clip = example((32, 32), 6)
    large = dataclasses.replace(micro_program(model), size=(32, 32))
    return large.run(clip.reference, clip.motion, progress=False)


def test_a_device_that_is_full_while_it_runs_is_told_with_a_size_that_fits(micro, full, monkeypatch, caplog):
    """The weights are on the device already, so that nothing was planned before."""
    needs = dataclasses.replace(micro_program(micro), size=(24, 24)).needs()
    limit = 1 + (bytes_of(micro.params) + max(need.working for need in needs)) / POOL_SHARE
    held = bytes_of(micro.params)
    monkeypatch.setattr(program_module, "default_device", lambda: device(bytes_limit=limit, bytes_in_use=held))
    caplog.set_level("INFO", "mafx")
    with pytest.raises(
        InputError, match=r"^the device has too little memory \(RES.* 7\.0GiB\); 24x24 fits, with 0\.0 GiB$"
    ):
        run_large(micro)
    assert caplog.messages == ["The device is too small; looking whether 24x24 fits."]
    monkeypatch.setattr(program_module, "default_device", lambda: device(bytes_limit=limit / 4, bytes_in_use=held))
    with pytest.raises(InputError, match="7.0GiB\\); take a smaller size"):
        run_large(micro)


def test_a_full_device_that_says_nothing_of_itself_is_told_with_fixed_advice(micro, full, caplog):
    caplog.set_level("INFO", "mafx")
    with pytest.raises(InputError, match="7.0GiB\\); take a smaller size"):
        run_large(micro)
    assert not caplog.messages


def test_a_compiler_that_gives_up_is_a_device_that_is_too_small(waiting, monkeypatch):
    compile_all = program_module.Program.compile

    def gives_up(self):
        if self.size == (32, 32):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm\nA long list")
        return compile_all(self)

    monkeypatch.setattr(program_module.Program, "compile", gives_up)
    program = dataclasses.replace(micro_program(waiting, memory=16), size=(32, 32))
    with pytest.raises(InputError, match=r"no room on the device \(RES.* space hbm\); 24x24 fits, with 0\.0 GiB$"):
        program.fit()


def test_weights_on_the_device_stay_and_count(micro):
    """JAX arrays cannot leave: they need their room in every phase."""
    needs = micro_program(micro).needs()
    peak = bytes_of(micro.params) + max(need.working for need in needs)
    enough, too_little = ((peak + spare) / GIB / CARD_SHARE / POOL_SHARE for spare in (1, -1))
    fit = micro_program(micro, memory=enough).fit()
    assert fit.together and fit.peak == peak
    with pytest.raises(InputError, match="may be used"):
        micro_program(micro, memory=too_little).fit()


WEIGHTS = {"text": 1, "autoencoder": 1, "appearance": 7, "unet": 10, "control": 3}  # 22 in all
NEEDS = [
    Need("text", "text", ("text",), 1),
    Need("banks", "banks", ("appearance",), 2),
    Need("steps", "steps", ("unet", "control"), 6),
    Need("steps, shallow", "steps", ("unet", "control"), 4),
    Need("decoding", "decoding", ("autoencoder",), 12),
]


@pytest.mark.parametrize(
    ("usable", "together", "peak", "room"),
    [
        (34, True, 34, {}),  # decoding beside all weights
        (33, False, 19, {"text": 32, "banks": 31, "steps": 27, "decoding": 21}),
        (19, False, 19, {"text": 18, "banks": 17, "steps": 13, "decoding": 7}),  # the steps beside their own
    ],
)
def test_how_networks_fit(usable, together, peak, room):
    assert fit_networks(NEEDS, WEIGHTS, 0, usable) == (together, room, peak, usable)
    shown = "All networks fit" if together else "Networks take turns"
    assert str(fit_networks(NEEDS, WEIGHTS, 0, usable)).startswith(shown)


def test_networks_that_do_not_fit():
    message = r"steps: expected 19\.0 GiB of the device's memory \(13\.0 for weights\), found 18\.0 that may be used$"
    needs = [need._replace(working=need.working * GIB) for need in NEEDS]
    weights = {name: size * GIB for name, size in WEIGHTS.items()}
    with pytest.raises(InputError, match=message):
        fit_networks(needs, weights, 0, 18 * GIB)
    with pytest.raises(InputError, match=r"decoding: expected 34\.0 GiB .*\(22\.0 for weights\)"):
        fit_networks(needs, {}, 22 * GIB, 33 * GIB)  # they cannot leave


def device(**statistics):
    return SimpleNamespace(memory_stats=lambda: statistics or None)


def test_what_may_be_used():
    assert usable_bytes(device(), None, 0) is None  # a CPU
    assert usable_bytes(device(), 8, 0) == 8 * GIB * CARD_SHARE * POOL_SHARE
    card = device(bytes_limit=6 * GIB, bytes_in_use=3 * GIB)  # 2 of the 3 are weights of this animation
    assert usable_bytes(card, None, 2 * GIB) == 6 * GIB * POOL_SHARE - GIB
    assert usable_bytes(card, 8, 2 * GIB) == 6 * GIB * POOL_SHARE - GIB  # JAX manages no more
    assert usable_bytes(card, 4, 2 * GIB) == 4 * GIB * CARD_SHARE * POOL_SHARE


def test_a_device_says_itself_how_much_it_has(waiting, monkeypatch):
    limit = int(1.001 * least_memory(micro_program(waiting)) * GIB * CARD_SHARE)
    monkeypatch.setattr(program_module, "default_device", lambda: device(bytes_limit=limit, bytes_in_use=0))
    fit = micro_program(waiting).fit()
    assert not fit.together and fit.usable == limit * POOL_SHARE
