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
    (state, batch, _), _ = traced.in_avals
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
