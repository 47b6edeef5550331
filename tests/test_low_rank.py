"""Low-rank updates: sums that the networks are given, files that are small, and a training that moves nothing else."""

import dataclasses
import importlib

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from micro import MICRO, micro_config

from mafx.bundled import load_bundled
from mafx.errors import InputError
from mafx.flops import count_flops
from mafx.low_rank import (
    Update,
    add_update,
    apply_update,
    base_fingerprint,
    is_base,
    pairs_of,
    read_update,
    update_shapes,
    weights_of,
    write_update,
)
from mafx.models.animator import parameter_shapes
from mafx.pretrained import export
from mafx.pretrained.layout import load_pretrained, save_pretrained
from mafx.sources import find_source, find_sources
from mafx.training.checkpoints import read_parameters
from mafx.training.config import ATTENTION, LOW_RANK
from mafx.training.loop import train
from mafx.training.runs import load_run
from mafx.training.sharding import make_mesh
from mafx.training.step import trace_step
from mafx.trees import flatten

KERNEL = "unet/encoder/down_blocks_0/attentions_0/transformer_blocks_0/attn1/to_q/kernel"
CONVOLUTION = "unet/encoder/conv_in/kernel"


def an_update(model, rng, names=(KERNEL, CONVOLUTION), rank=3):
    flat = flatten(model.params)
    pairs = {}
    for name in names:
        rows, columns = flat[name].size // flat[name].shape[-1], flat[name].shape[-1]
        pairs[name] = (rng.normal(size=(rows, rank)), rng.normal(size=(rank, columns)))
    pairs = {name: (a.astype(np.float32), b.astype(np.float32)) for name, (a, b) in pairs.items()}
    return Update(pairs, base_fingerprint(flat))


def test_the_networks_are_given_sums(micro, rng):
    update, flat = an_update(micro, rng), flatten(micro.params)
    arrays = {}
    for name, (a, b) in update.pairs.items():
        arrays |= {f"low_rank/{name}/a": a, f"low_rank/{name}/b": b}
    added = add_update(flat | arrays)
    assert added.keys() == flat.keys() == weights_of(flat | arrays).keys()
    assert pairs_of(flat | arrays).keys() == update.pairs.keys()
    for name, x in flat.items():
        if name not in update.pairs:
            assert added[name] is x
    a, b = update.pairs[CONVOLUTION]
    h, w, c, _ = flat[CONVOLUTION].shape
    expected = np.asarray(flat[CONVOLUTION]) + np.einsum("hwcr,ro->hwco", a.reshape(h, w, c, -1), b)
    np.testing.assert_allclose(added[CONVOLUTION], expected, rtol=1e-5, atol=1e-5)


def test_spatial_attention_is_changed_by_default_and_no_other_layer(micro):
    shapes = update_shapes(flatten(micro.params), ATTENTION, 2)
    kernels = {name.removeprefix("low_rank/").rpartition("/")[0] for name in shapes}
    assert all("/attentions_" in name and "motion_modules" not in name for name in kernels)
    assert {name.split("/")[0] for name in kernels} == {"unet", "appearance"}
    assert {name.split("/")[-2] for name in kernels} == {"to_q", "to_k", "to_v", "to_out"}
    with pytest.raises(InputError, match=r"config.low_rank.kernels: 'to_x' is found in the name of no kernel"):
        update_shapes(flatten(micro.params), "to_x", 2)


def test_a_file_gives_back_what_was_written(micro, rng, tmp_path):
    update = an_update(micro, rng)
    write_update(tmp_path / "one.safetensors", update)
    found = read_update(tmp_path / "one.safetensors")
    assert found.base == update.base and found.pairs.keys() == update.pairs.keys()
    for name, pair in update.pairs.items():
        for got, expected in zip(found.pairs[name], pair, strict=True):
            np.testing.assert_array_equal(got, expected)


def in_dtype(model, dtype):
    return dataclasses.replace(model, params=jax.tree.map(lambda x: np.asarray(x).astype(dtype), model.params))


def test_an_update_knows_the_weights_that_it_was_trained_on(micro, rng):
    update, other = an_update(micro, rng), dict(flatten(micro.params))
    other["unet/encoder/conv_in/bias"] = other["unet/encoder/conv_in/bias"] + 1
    assert is_base(micro, update) and is_base(in_dtype(micro, jnp.bfloat16), update)
    stranger = dataclasses.replace(micro, params=flax.traverse_util.unflatten_dict(other, sep="/"))
    assert not is_base(stranger, update)
    assert is_base(in_dtype(stranger, np.float16), update), "it cannot be told"
    assert is_base(stranger, dataclasses.replace(update, base=""))


def test_another_library_reads_the_file(micro, rng, tmp_path):
    from safetensors import safe_open  # noqa: PLC0415

    update = an_update(micro, rng)
    write_update(tmp_path / "one.safetensors", update)
    with safe_open(tmp_path / "one.safetensors", "np") as file:
        np.testing.assert_array_equal(file.get_tensor(f"{KERNEL}.a"), update.pairs[KERNEL][0])
        assert file.metadata()["base"] == update.base


def test_files_that_are_no_updates_and_models_of_other_sizes(micro, rng, tmp_path):
    from mafx.pretrained.safetensors_files import write_safetensors  # noqa: PLC0415

    x = np.ones((2, 2), np.float32)
    no_updates = (({"x.a": x, "x.b": x}, {}), ({"x.a": x}, {"base": "0"}), ({"x.a": x, "x.b": x[0]}, {"base": "0"}))
    for i, (tensors, metadata) in enumerate(no_updates):
        write_safetensors(tmp_path / f"{i}.safetensors", tensors, metadata)
        with pytest.raises(InputError, match=r"expected a low-rank update of mafx, with matrices NAME.a and NAME.b"):
            read_update(tmp_path / f"{i}.safetensors")
    update = an_update(micro, rng)
    a, b = update.pairs[KERNEL]
    for pairs, reason in (({KERNEL: (a[:-1], b)}, "which has the shape"), ({"elsewhere/kernel": (a, b)}, "not there")):
        with pytest.raises(InputError, match=f"expected an update of this model.*{reason}"):
            apply_update(micro, Update(pairs, ""))


def test_a_run_trains_its_update_alone_and_its_file_makes_the_same_model(one_device, micro, tmp_path, caplog):
    """The update of a run that starts from published weights is exported, and applied to them."""
    save_pretrained(micro, tmp_path / "base")
    changes = {"low_rank.rank": 2, "train_only": LOW_RANK, "init_from": str(tmp_path / "base"), "lr": 1e-2}
    for steps in (1, 2):  # goes on
        train(micro_config("appearance", steps=steps, **changes), tmp_path / "personal", one_device)
    base, personal = load_pretrained(tmp_path / "base"), load_run(tmp_path / "personal")
    before = flatten(base.params)
    after, _ = read_parameters(tmp_path / "personal")
    for name, x in before.items():
        np.testing.assert_array_equal(after[name], x, err_msg=name)
    export.export(export.parse([str(tmp_path / "personal"), str(tmp_path / "p.safetensors"), "--low_rank"]))
    update = read_update(tmp_path / "p.safetensors")
    assert update.base and is_base(base, update)
    applied, expected = flatten(apply_update(base, update).params), flatten(personal.params)
    assert applied.keys() == expected.keys()
    for name, x in expected.items():
        np.testing.assert_allclose(applied[name], x, rtol=1e-5, atol=1e-7, err_msg=name)
    changed = {name for name in expected if (np.asarray(expected[name]) != np.asarray(before[name])).any()}
    assert changed and changed <= update.pairs.keys()
    with pytest.raises(InputError, match=r"has config.low_rank .*give the one it was begun with"):
        train(micro_config("appearance", steps=3, **changes | {"low_rank.rank": 4}), tmp_path / "personal", one_device)
    assert jnp.float32 == personal.dtype


def test_clips_go_through_temporal_layers_that_are_not_trained(one_device):
    """Single frames do not, as in the appearance stage."""

    def flops(stage):
        config = micro_config(stage, **{"low_rank.rank": 2, "train_only": LOW_RANK})
        mesh = make_mesh(config.mesh, one_device)
        sizes = (MICRO, MICRO.without_temporal_layers())
        shapes = update_shapes(flatten(parameter_shapes(MICRO)), ATTENTION, 2)
        assert not any("motion_modules" in name for name in shapes)
        return [count_flops(trace_step(config, size, mesh, 1).jaxpr) for size in sizes]

    with_layers, without = flops("temporal")
    assert with_layers > without
    with_layers, without = flops("appearance")
    assert with_layers == without


# -- As flags and on the page


def test_a_source_has_its_update(rng, tmp_path, caplog):
    bundled = load_bundled()
    flat = flatten(bundled.params)
    name = next(name for name in sorted(flat) if name.endswith("/kernel"))
    pair = (np.ones((flat[name].size // flat[name].shape[-1], 1), np.float32), np.ones((1, flat[name].shape[-1])))
    path = tmp_path / "bundled.anna.safetensors"
    write_update(path, Update({name: pair}, base_fingerprint(flat)))
    source = find_source(None, None, lora=str(path))
    assert source.flags == ("--lora", str(path)) and str(path) in source.name
    np.testing.assert_allclose(flatten(source.load("float32").params)[name], np.asarray(flat[name]) + 1, rtol=1e-6)
    assert "other weights" not in caplog.text

    write_update(tmp_path / "bundled.bob.safetensors", Update({name: pair}, "0"))
    (tmp_path / "bundled.broken.safetensors").write_bytes(b"0")
    write_update(tmp_path / "stranger.eve.safetensors", Update({name: pair}, "0"))
    found = find_sources(str(tmp_path))
    assert list(found) == ["bundled", "bundled.anna", "bundled.bob"]
    assert "bundled.broken.safetensors is left out" in caplog.text
    assert "expected a low-rank update to be named bundled.PERSON.safetensors, found stranger" in caplog.text
    found["bundled.bob"].load("float32")
    assert "bundled.bob.safetensors was trained on other weights than those of the bundled model" in caplog.text


@pytest.mark.parametrize("command", ["sample", "mafx.inspect.__main__"])
def test_commands_that_take_a_model_take_an_update(command):
    flags = ["--lora", "person.safetensors", "--out", "folder"]
    assert importlib.import_module(command).make_parser().parse_args(flags).lora == "person.safetensors"
