"""The largest batch that fits: the search on made-up memory, and a step that is compiled."""

import math

import jax
import pytest
from micro import micro_config

from mafx.training import fit
from mafx.training.fit import compiled_gib, largest_batch
from mafx.training.runs import model_sizes
from mafx.training.sharding import make_mesh
from mafx.training.step import trace_step


@pytest.mark.parametrize("fitting", [0, 1, 2, 3, 7, 8, 100])
def test_the_search_finds_the_largest_and_tries_few(fitting):
    tried = []

    def memory(batch):
        tried.append(batch)
        return 10 + 2 * batch if batch <= 2 * fitting else math.inf  # a compiler that gives up

    assert largest_batch(memory, 10 + 2 * fitting) == fitting
    assert len(set(tried)) == len(tried) <= 2 + 2 * math.log2(max(1, fitting))


@pytest.fixture
def traced(one_device):
    config = micro_config("appearance")
    return trace_step(config, model_sizes(config), make_mesh({"data": 1}, jax.devices()[:1]), 2)


def test_memory_is_what_lies_there_and_what_is_computed(traced):
    (state, batch, *_), _ = traced.in_avals
    assert batch["video"].shape == (2, 1, 16, 16, 3)
    arguments = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((state, batch)))
    assert arguments < 2**30 * compiled_gib(traced) < 20 * arguments


def test_the_table_ends_with_what_to_do(traced, monkeypatch, capsys):
    monkeypatch.setattr(fit, "trace_step", lambda *_: traced)
    gib = iter([1.0, 2.0, 4.0, 3.0])  # of 1, 2, 4 and 3 examples
    monkeypatch.setattr(fit, "compiled_gib", lambda _: next(gib))
    mesh = make_mesh({"data": 2}, jax.devices()[:2])
    assert fit.report(micro_config("appearance"), mesh, 3.5) == 3
    out = capsys.readouterr().out
    assert "the memory is too small" in out and "3 per device, --config.batch 6" in out
    assert [line.split()[:2] for line in out.splitlines()[3:-1]] == [
        ["1", "1.00"],
        ["2", "2.00"],
        ["4", "4.00"],
        ["3", "3.00"],
    ]


@pytest.mark.parametrize(
    ("limit", "advice"),
    [
        (6.0, "--config.batch 4 --config.accumulate 2 takes 5.0 of 6.0 GiB, as compiled"),
        (2.5, "--config.batch 2 --config.accumulate 4 takes 2.5 of 2.5 GiB, as compiled"),  # 3 do not divide 4
        (2.0, "--config.remat blocks --config.batch 4 --config.accumulate 2 takes 2.0 of 2.0 GiB, as compiled"),
        (0.1, None),
    ],
)
def test_what_fits_keeps_the_examples_of_a_step(limit, advice, monkeypatch, one_device):
    """Of made-up memory: an example takes 2.5 GiB, and 1 if blocks are computed again."""
    config, mesh = micro_config("appearance"), make_mesh({"data": 2}, jax.devices()[:2])
    config.batch, config.accumulate, config.remat = 8, 1, "none"
    monkeypatch.setattr(fit, "trace_step", lambda config, sizes, mesh, batch: (config.remat, batch))
    monkeypatch.setattr(fit, "compiled_gib", lambda step: {"none": 2.5, "blocks": 1.0}[step[0]] * step[1])
    assert fit.what_fits(config, mesh, limit) == advice


def test_a_training_without_room_says_what_fits(monkeypatch, one_device, capsys):
    """The memory of a card is made up; the steps are compiled."""
    config = micro_config("appearance")
    config.batch, config.accumulate = 2, 2
    mesh = make_mesh({"data": 1}, one_device)
    needed = compiled_gib(trace_step(config, model_sizes(config), mesh, 2))
    config.batch, config.accumulate = 4, 1

    class Card:
        def memory_stats(self):
            return {"bytes_limit": 1.001 * needed * 2**30 / fit.POOL_SHARE}

    monkeypatch.setattr(fit, "device_of", lambda mesh: Card())
    monkeypatch.setattr(fit, "make_mesh", lambda _: mesh)
    assert "--config.batch 2 --config.accumulate 2" in fit.advise(config)
    assert "The device is full." in capsys.readouterr().err
