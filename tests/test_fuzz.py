import os
import time

import numpy as np
import pytest

from mafx.benchmarks import fuzz
from mafx.benchmarks.fuzz_readers import READERS, Reader
from mafx.benchmarks.mutations import copy_tree, mutate
from mafx.errors import InputError


@pytest.mark.parametrize("name", READERS)
def test_files_that_nobody_changed_are_right(name, tmp_path):
    READERS[name].write(tmp_path / "inputs")
    copy_tree(tmp_path / "inputs", tmp_path / "work")
    for path in sorted(path for path in (tmp_path / "work").rglob("*") if path.is_file()):
        assert fuzz.read_files(name, tmp_path / "work", path) == fuzz.Result("right"), path
        if name not in ("pictures", "videos"):  # which read one file
            break


def test_a_case_is_what_its_numbers_say(tmp_path):
    READERS["archives"].write(tmp_path / "inputs")
    seen = set()
    for number in (1, 2, 1, 2):
        copy_tree(tmp_path / "inputs", tmp_path / "work")
        path = mutate(tmp_path / "work", np.random.default_rng([0, number]))
        seen.add(path.read_bytes())
    assert len(seen) == 2 and (tmp_path / "inputs" / path.name).read_bytes() not in seen


def raises(error):
    raise error


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (InputError("one line"), "refused"),
        (InputError("two\nlines"), "raw"),
        (KeyError("a"), "raw"),
        (SystemExit(1), "raw"),
    ],
)
def test_what_counts_as_a_defect(tmp_path, monkeypatch, error, outcome):
    monkeypatch.setitem(READERS, "x", Reader(write=raises, read=lambda folder, path: raises(error)))
    assert fuzz.read_files("x", tmp_path, tmp_path).outcome == outcome


def serve(pipe, inputs, work):
    """A child that does what its cases are called."""
    pipe.send("ready")
    what = pipe.recv().reader
    if what == "crash":
        os._exit(7)
    grown = np.ones(40_000_000 if what == "grow" else 1)
    time.sleep(10)
    pipe.send(fuzz.Result("right", str(grown.size)))


@pytest.mark.parametrize(("name", "outcome"), [("crash", "crash"), ("hang", "hang"), ("grow", "memory")])
def test_children_that_crash_hang_or_grow_are_noticed(name, outcome, monkeypatch, tmp_path):
    monkeypatch.setattr(fuzz, "LONGEST", 1.5)
    child = fuzz.Child(tmp_path, tmp_path, serve)
    before = fuzz.resident_bytes(child.process.pid)
    monkeypatch.setattr(fuzz, "MEMORY", before + 2e8)
    assert child.answer(fuzz.Case(name, 0, 0)).outcome == outcome
    child.end()


def test_the_command_prints_a_table(capsys):
    fuzz.main(["--readers", "log", "stamp", "--cases", "20"])
    out = capsys.readouterr().out
    assert "| all | 40 |" in out and "| log | 20 |" in out
