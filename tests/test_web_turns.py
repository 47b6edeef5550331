"""Turns: one job at a time, in order, one waiting job a person."""

import threading

import pytest

from mafx.errors import InputError
from mafx.web.turns import CancelledError, Turns, Update

SOON = 20  # seconds, within which everything here happens


@pytest.fixture
def turns():
    turns = Turns(most_waiting=5)
    yield turns
    turns.close()


class Slow:
    """Work that goes on until it is let go."""

    def __init__(self):
        self.began, self.let_go = threading.Event(), threading.Event()

    def __call__(self, job):
        self.began.set()
        while not self.let_go.wait(0.01):
            job.report(Update(part="steps", done=1, total=2))
        return job.person


def start_slow(turns, person="first"):
    slow = Slow()
    job = turns.submit(person, slow)
    assert slow.began.wait(SOON)
    return slow, job


def test_jobs_run_in_the_order_in_which_they_came_and_know_their_place(turns):
    slow, first = start_slow(turns)
    order = []
    others = [turns.submit(f"person {i}", lambda job: order.append(job.person)) for i in range(3)]
    assert [job.update.done for job in others] == [1, 2, 3]
    assert {job.update.part for job in others} == {"waiting"}
    slow.let_go.set()
    for job in others:
        job.wait(SOON)
    assert first.wait(SOON) == "first"
    assert order == ["person 0", "person 1", "person 2"]


def test_a_person_has_one_job_that_waits_and_the_queue_has_an_end(turns):
    slow, _ = start_slow(turns)
    waiting = turns.submit("first", lambda job: 1)  # one runs, one waits
    with pytest.raises(InputError, match="cancel it first"):
        turns.submit("first", lambda job: 2)
    for i in range(4):
        turns.submit(f"other {i}", lambda job: 3)
    with pytest.raises(InputError, match="at most 5 waiting"):
        turns.submit("one too many", lambda job: 4)
    slow.let_go.set()
    assert waiting.wait(SOON) == 1


def test_a_running_job_ends_at_its_next_report_and_the_next_one_begins(turns):
    slow, first = start_slow(turns)
    second = turns.submit("second", lambda job: "done")
    assert turns.cancel("first") == 1
    with pytest.raises(CancelledError):
        first.wait(SOON)
    assert second.wait(SOON) == "done"
    assert not slow.let_go.is_set()


def test_a_cancelled_job_leaves_its_place_at_once_and_is_never_begun(turns):
    slow, _ = start_slow(turns)
    begun = []
    second = turns.submit("second", begun.append)
    third = turns.submit("third", lambda job: "done")
    assert third.update.done == 2
    turns.withdraw(second)
    assert second.is_finished and third.update.done == 1
    slow.let_go.set()
    assert third.wait(SOON) == "done" and not begun
    turns.withdraw(third)  # which is finished: nothing happens
    assert third.error is None


def test_a_failing_job_tells_who_waits_for_it_and_nobody_else(turns):
    def fail(job):
        raise InputError("no")

    job, other = turns.submit("a", fail), turns.submit("b", lambda job: 1)
    with pytest.raises(InputError, match="no"):
        job.wait(SOON)
    assert other.wait(SOON) == 1


def test_closing_ends_everything():
    turns = Turns()
    _, running = start_slow(turns)
    waiting = turns.submit("second", lambda job: 1)
    turns.close()
    for job in (running, waiting):
        with pytest.raises(CancelledError):
            job.wait(0)
