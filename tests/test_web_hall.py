"""Nothing queues: frames that come too fast are dropped, and what is shown is never old."""

import threading
import time

import pytest

from mafx.errors import InputError
from mafx.web.hall import DroppedError, EndedError, Hall

SLOW = 0.04  # seconds of a frame


@pytest.fixture
def hall():
    hall = Hall(most=3, idle=30)
    yield hall
    hall.close()


def slowly(frame):
    time.sleep(SLOW)
    return frame


def offer_at(hall, name, count, fps):
    """Offer frames at a rate; the seconds until each was shown, None where it was dropped."""
    began, took = {}, {}

    def note(i, future):
        took[i] = None if isinstance(future.exception(), DroppedError) else time.monotonic() - began[i]

    futures = []
    for i in range(count):
        began[i] = time.monotonic()
        futures.append(hall.offer(name, i))
        futures[-1].add_done_callback(lambda future, i=i: note(i, future))
        time.sleep(1 / fps)
    for future in futures:
        future.exception(timeout=10)
    return [took[i] for i in range(count)]


def test_frames_that_come_too_fast_are_dropped_and_the_others_are_never_late(hall):
    name = hall.open("ann", slowly)
    took = offer_at(hall, name, count=60, fps=100)
    shown = [seconds for seconds in took if seconds is not None]
    assert hall.dropped(name) == took.count(None) == 60 - len(shown)
    assert 5 < len(shown) < 30  # about 0.6 s of frames of 0.04 s
    assert sorted(shown)[len(shown) // 2] < 3 * SLOW  # a queue would grow to a second and more
    assert took[-1] is not None  # the newest frame is always shown


def test_a_slow_camera_loses_nothing(hall):
    name = hall.open("ann", lambda frame: frame + 1)
    assert None not in offer_at(hall, name, count=10, fps=50) and hall.dropped(name) == 0
    assert hall.offer(name, 41).result(timeout=10) == 42


def test_people_take_turns_and_do_not_drop_each_others_frames(hall):
    names = [hall.open(person, slowly) for person in ("ann", "ben")]
    results = {}
    threads = [
        threading.Thread(target=lambda name=name: results.update({name: offer_at(hall, name, 40, 100)}))
        for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shown = [sum(seconds is not None for seconds in results[name]) for name in names]
    assert min(shown) >= 3 and max(shown) - min(shown) <= 2
    assert [hall.dropped(name) for name in names] == [40 - count for count in shown]


def test_a_person_has_one_mirror_and_a_hall_has_so_many_places(hall):
    first = hall.open("ann", slowly)
    second = hall.open("ann", slowly)
    with pytest.raises(EndedError):
        hall.offer(first, 0)
    for person in ("ben", "cem"):
        hall.open(person, slowly)
    with pytest.raises(InputError, match="expected at most 3 people at mirrors"):
        hall.open("dan", slowly)
    hall.end(second)
    hall.open("dan", slowly)


def test_whoever_sends_no_frame_has_left():
    hall = Hall(most=1, idle=0.1)
    name = hall.open("ann", slowly)
    time.sleep(0.3)
    with pytest.raises(EndedError):
        hall.offer(name, 0)
    hall.open("ben", slowly)
    hall.close()


def test_errors_are_told_to_whoever_sent_the_frame_and_the_hall_goes_on(hall):
    def fail(frame):
        raise InputError("not a picture")

    broken, whole = hall.open("ann", fail), hall.open("ben", slowly)
    with pytest.raises(InputError, match="not a picture"):
        hall.offer(broken, 0).result(timeout=10)
    assert hall.offer(whole, 7).result(timeout=10) == 7


def test_frames_that_nobody_waits_for_are_not_shown(hall):
    seen = []
    name = hall.open("ann", lambda frame: (seen.append(frame), time.sleep(SLOW)))
    hall.offer(name, 1)
    time.sleep(SLOW / 2)
    hall.offer(name, 2).cancel()
    hall.offer(name, 3).result(timeout=10)
    assert seen == [1, 3]


def test_the_end_of_a_hall_answers_everybody():
    hall = Hall()
    name = hall.open("ann", slowly)
    first = hall.offer(name, 1)
    time.sleep(SLOW / 2)
    second = hall.offer(name, 2)
    hall.close()
    assert first.result(timeout=10) == 1
    with pytest.raises(EndedError):
        second.result(timeout=10)
