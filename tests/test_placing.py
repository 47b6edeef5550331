"""Where parameters lie. CPU devices stand in for cards, and NumPy arrays for what waits on the host."""

import collections
import dataclasses
from types import SimpleNamespace

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding
from micro import example

import mafx
from mafx import placing
from mafx.placing import CUDNN_KERNEL_ORDER, DeviceNetworks, bytes_of, host_array, is_nvidia

SETTINGS = {"steps": 3, "window": 4, "overlap": 1}


@pytest.fixture
def waiting(micro):
    """A model whose parameters wait on the host, and that was never animated."""
    return dataclasses.replace(micro, params=jax.tree.map(np.asarray, micro.params))


@pytest.fixture
def nvidia(monkeypatch):
    """Every device passes for an NVIDIA card."""
    monkeypatch.setattr(placing, "is_nvidia", lambda device: True)


def animate(model, **settings):
    clip = example((16, 16), 11)
    settings = SETTINGS | {"progress": False} | settings
    return mafx.animate(model, clip.reference, clip.motion[:6], **settings)


def test_kernels_of_convolutions_lie_in_cudnn_s_order_on_nvidia_cards(micro, waiting, nvidia):
    program = mafx.plan(waiting, mafx.Settings(**SETTINGS), (16, 16), 6)
    video = animate(waiting).video
    params = waiting.on_device(program.sharding).fetch(waiting.params, list(waiting.params))
    layouts = {path: x.format.layout for path, x in flax.traverse_util.flatten_dict(params).items()}
    kernels = {path for path, x in flax.traverse_util.flatten_dict(micro.params).items() if x.shape[:2] == (3, 3)}
    assert len(kernels) > 20
    assert {path for path, layout in layouts.items() if layout == CUDNN_KERNEL_ORDER} == kernels
    np.testing.assert_array_equal(video, animate(micro).video)


@pytest.mark.parametrize("progress", [False, True])
def test_what_is_compiled_ahead_for_a_card_is_what_runs(waiting, nvidia, progress):
    """Also where arrays are bound to a device, and kernels are not in JAX's own order."""
    jax.clear_caches()
    compiled = collections.Counter()

    def listen(event, duration, fun_name="", **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled[fun_name.removeprefix("jit(").removesuffix(")")] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    functions = ("encode_text", "encode_image", "write_banks", "run_steps", "decode")
    mafx.plan(waiting, mafx.Settings(**SETTINGS), (16, 16), 6).compile()
    assert {name: compiled[name] for name in functions} == dict.fromkeys(functions, 1)
    animate(waiting, progress=progress)
    assert {name: compiled[name] for name in functions} == dict.fromkeys(functions, 1)


def test_networks_are_brought_to_the_device_once(waiting):
    animate(waiting)
    networks = waiting.on_device(None)
    assert networks.moved.bytes == networks.bytes == bytes_of(waiting.params)
    animate(waiting, seed=1)
    assert networks.moved.bytes == bytes_of(waiting.params)


def test_parameters_that_were_exchanged_are_brought_anew(micro, waiting):
    before = animate(waiting).latents
    waiting.params["unet"] = jax.tree.map(lambda x: x * np.float32(0.9), waiting.params["unet"])
    after = animate(waiting).latents
    assert np.abs(after - before).max() > 1e-3
    moved = waiting.on_device(None).moved.bytes
    assert moved == bytes_of(waiting.params) + bytes_of(waiting.params["unet"])


def test_parameters_on_a_device_are_used_where_they_lie(micro, nvidia):
    """Those of a run in training must not be copied."""
    networks = DeviceNetworks(None)
    fetched = networks.fetch(micro.params, ["unet", "control"])
    assert list(fetched) == ["unet", "control"] and fetched["unet"] is micro.params["unet"]
    assert mafx.plan(micro).sharding is None and networks.bytes == networks.moved.bytes == 0


def test_loaded_arrays_wait_on_the_host_of_an_accelerator(monkeypatch):
    x = np.random.default_rng(0).standard_normal((3, 3, 5, 7), np.float32).transpose(3, 2, 0, 1)
    on_cpu = host_array(x, "bfloat16")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    waiting = host_array(x, "bfloat16")
    assert isinstance(on_cpu, jax.Array) and isinstance(waiting, np.ndarray) and waiting.flags.c_contiguous
    assert waiting.dtype == jnp.bfloat16
    np.testing.assert_array_equal(waiting, np.asarray(on_cpu))


def test_nvidia_cards_are_told_from_others():
    def device(platform, **facts):
        return SimpleNamespace(platform=platform, **facts)

    assert is_nvidia(device("gpu", compute_capability="8.9"))
    assert not is_nvidia(device("gpu", compute_capability="gfx90a"))
    assert not is_nvidia(device("tpu")) and not is_nvidia(jax.devices()[0])


def test_a_mesh_of_cards_has_kernels_in_cudnn_s_order_on_each(waiting, nvidia):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("windows",))
    program = mafx.plan(waiting, mafx.Settings(**SETTINGS), (16, 16), 6, mesh)
    kernel = waiting.on_device(program.sharding).fetch(waiting.params, ["unet"])["unet"]["encoder"]["conv_in"]["kernel"]
    assert kernel.format.layout == CUDNN_KERNEL_ORDER and kernel.is_fully_replicated
    assert kernel.devices() == set(jax.devices()[:2])


def test_parts_can_be_asked_for_a_device_of_one_s_own(waiting, nvidia):
    """Every array that an animation leaves on the device says where it lies."""
    sharding = SingleDeviceSharding(jax.devices()[3])
    for part in mafx.plan(waiting, mafx.Settings(**SETTINGS), (16, 16), 6).parts(sharding):
        shapes = [x for x in jax.tree.leaves(part.arguments) if isinstance(x, jax.ShapeDtypeStruct)]
        assert shapes and {x.sharding for x in shapes} == {sharding}, part.name
