"""Low-rank updates: sums that the networks are given, files that are small, and a training that moves nothing else."""

import dataclasses

import flax
import jax.numpy as jnp
import numpy as np
import pytest
from micro import micro_config

from mafx.errors import InputError
from mafx.low_rank import (
    Update,
    add_update,
    apply_update,
    model_fingerprint,
    pairs_of,
    read_update,
    update_shapes,
    weights_of,
    write_update,
)
from mafx.pretrained import export
from mafx.training.checkpoints import read_parameters
from mafx.training.config import ATTENTION, LOW_RANK
from mafx.training.loop import train
from mafx.training.runs import load_run, load_update
from mafx.training.step import flatten

KERNEL = "unet/encoder/down_blocks_0/attentions_0/transformer_blocks_0/attn1/to_q/kernel"
CONVOLUTION = "unet/encoder/conv_in/kernel"


def an_update(model, rng, names=(KERNEL, CONVOLUTION), rank=3):
    flat = flatten(model.params)
    pairs = {}
    for name in names:
        rows, columns = flat[name].size // flat[name].shape[-1], flat[name].shape[-1]
        pairs[name] = (rng.normal(size=(rows, rank)), rng.normal(size=(rank, columns)))
    pairs = {name: (a.astype(np.float32), b.astype(np.float32)) for name, (a, b) in pairs.items()}
    return Update(pairs, model_fingerprint(model))


def test_the_networks_are_given_sums(micro, rng):
    update, flat = an_update(micro, rng), flatten(micro.params)
    arrays = {f"low_rank/{name}/{half}": x for name, pair in update.pairs.items() for half, x in zip("ab", pair, strict=True)}
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
    half = dataclasses.replace(micro, params=flax.traverse_util.unflatten_dict(flatten(micro.params), sep="/"))
    assert model_fingerprint(half) == update.base, "the same weights elsewhere"


def test_another_library_reads_the_file(micro, rng, tmp_path):
    from safetensors import safe_open  # noqa: PLC0415

    update = an_update(micro, rng)
    write_update(tmp_path / "one.safetensors", update)
    with safe_open(tmp_path / "one.safetensors", "np") as file:
        np.testing.assert_array_equal(file.get_tensor(f"{KERNEL}.a"), update.pairs[KERNEL][0])
        assert file.metadata()["base"] == update.base


def test_files_that_are_no_updates_and_models_of_other_sizes(micro, rng, tmp_path):
    from mafx.pretrained.formats import write_safetensors  # noqa: PLC0415

    x = np.ones((2, 2), np.float32)
    for i, (tensors, metadata) in enumerate((({"x.a": x, "x.b": x}, {}), ({"x.a": x}, {"base": "0"}))):
        write_safetensors(tmp_path / f"{i}.safetensors", tensors, metadata)
        with pytest.raises(InputError, match=r"expected a low-rank update of mafx, with tensors NAME.a and NAME.b"):
            read_update(tmp_path / f"{i}.safetensors")
    update = an_update(micro, rng)
    a, b = update.pairs[KERNEL]
    for pairs, reason in (({KERNEL: (a[:-1], b)}, "which has the shape"), ({"elsewhere/kernel": (a, b)}, "not there")):
        with pytest.raises(InputError, match=f"expected an update of this model.*{reason}"):
            apply_update(micro, Update(pairs, ""))


def test_a_run_trains_its_update_alone_and_its_file_makes_the_same_model(one_device, micro, tmp_path, caplog):
    """The base is a run; the update of a run that starts from it is exported, and applied to it."""
    train(micro_config("appearance", steps=1), tmp_path / "base", one_device)
    changes = {"low_rank.rank": 2, "train_only": LOW_RANK, "init_from": str(tmp_path / "base"), "lr": 1e-2}
    for steps in (1, 2):  # goes on
        train(micro_config("appearance", steps=steps, **changes), tmp_path / "personal", one_device)
    base, personal = load_run(tmp_path / "base"), load_run(tmp_path / "personal")
    before, _ = read_parameters(tmp_path / "base")
    after, _ = read_parameters(tmp_path / "personal")
    for name, x in before.items():
        np.testing.assert_array_equal(after[name], x, err_msg=name)
    export.export(export.parse([str(tmp_path / "personal"), str(tmp_path / "p.safetensors"), "--low_rank"]))
    update = read_update(tmp_path / "p.safetensors")
    assert update.base == model_fingerprint(base)
    applied, expected = flatten(apply_update(base, update).params), flatten(personal.params)
    assert applied.keys() == expected.keys()
    for name, x in expected.items():
        np.testing.assert_allclose(applied[name], x, rtol=1e-5, atol=1e-7, err_msg=name)
    changed = {name for name in expected if (np.asarray(expected[name]) != np.asarray(before[name])).any()}
    assert changed and changed <= update.pairs.keys()
    with pytest.raises(InputError, match=r"expected a run with config.low_rank.rank above 0"):
        load_update(tmp_path / "base")
    with pytest.raises(InputError, match=r"has config.low_rank .*give the one it was begun with"):
        train(micro_config("appearance", steps=3, **changes | {"low_rank.rank": 4}), tmp_path / "personal", one_device)
    assert jnp.float32 == personal.dtype
