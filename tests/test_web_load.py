"""Several people at once, some of whom leave: nobody's job is lost, and nobody sees another's."""

import argparse

import pytest
from conftest import QUICK_COMPILATION

pytest.importorskip("gradio", reason='Gradio is not here: pip install -e ".[web]"')

from mafx.benchmarks.web_load import Figures, measure


def test_six_people_for_some_seconds(programs, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", QUICK_COMPILATION)
    figures = measure(argparse.Namespace(clients=6, seconds=8, cache=programs))
    assert figures.done >= 6 and figures.asked == figures.done + figures.left + figures.lost
    assert (figures.lost, figures.overtaken, figures.seen) == (0, 0, 0), str(figures)
    assert figures.tried and figures.memory


def test_figures_see_what_is_overtaken_and_how_memory_goes():
    figures = Figures(memory=[100.0] * 10 + [300.0] * 10)
    for asked, done in ((10, 12), (11.5, 14), (10, 15), (14.5, 15.5)):
        figures.note_done(asked, done, f"{done}")
    assert figures.overtaken == 1  # the third, which was asked for long before the second
    assert figures.file_of_another("12") != "12"
    assert "memory 100 MiB early, 300 MiB late, 300 MiB at most" in str(figures)
