"""A mirror shows what the camera's person does, turned as mirrors turn it, to each person their own."""

import dataclasses

import numpy as np
import pytest

import mafx
from mafx.puppets import STANDING, Identity, draw_puppet
from mafx.web import mirror as mirror_module
from mafx.web.imitation import PuppetImitator
from mafx.web.mirror import Mirror, Reflection

CAMERA = 240, 320
NOBODY = np.zeros((*CAMERA, 3), np.uint8)


@pytest.fixture(scope="module")
def mirror(micro, pose_files):
    model = dataclasses.replace(micro, size=(16, 16))
    return Mirror(model, pose_files, mafx.Settings(steps=1, guidance_scale=1.0, sampler="euler"))


def camera(seed, **pose):
    """A frame of a camera in front of a drawn person."""
    return draw_puppet(Identity.from_seed(seed), STANDING | {"spread": 0.2} | pose, CAMERA)[0]


class Spy(PuppetImitator):
    """Notes the poses that it is shown."""

    def __init__(self):
        super().__init__(Identity.from_seed(0), (16, 16))
        self.poses = []

    def __call__(self, pose):
        self.poses.append(pose)
        return super().__call__(pose)


def test_the_picture_follows_the_person(mirror):
    reflection = mirror.open_on_puppet(0)
    first = reflection.picture
    assert first.shape == (16, 16, 3) and first.dtype == np.uint8
    shown = [reflection.show(camera(1, raise_r=angle)) for angle in (0.3, 1.3)]
    assert all(x.found and min(x.seconds) > 0 for x in shown)
    assert (shown[0].picture != shown[1].picture).any() and (shown[0].picture != first).any()


def test_a_picture_is_what_the_program_makes_of_its_labels(mirror):
    """Banks that are written once change nothing."""
    spy = Spy()
    reflection = Reflection(mirror, spy.picture, spy.labels, spy)
    shown = reflection.show(camera(1, raise_r=1.0)).picture
    motion = mafx.densepose.draw_labels(PuppetImitator(Identity.from_seed(0), (16, 16))(spy.poses[0]))[None]
    video = mirror.program.run(spy.picture, motion, progress=False).video
    np.testing.assert_array_equal(shown, mafx.media.to_uint8(video[0]))


def test_it_is_a_mirror(mirror):
    """Who stands at the left of what the camera sees, stands at the right of what the mirror shows."""
    for sway, side in ((-0.3, 1), (0.3, -1)):
        spy = Spy()
        Reflection(mirror, spy.picture, spy.labels, spy).show(camera(1, sway=sway))
        assert np.sign(spy.poses[0].points[0, 0] - CAMERA[1] / 2) == side


def test_while_nobody_is_seen_the_last_picture_stays(mirror):
    reflection = mirror.open_on_puppet(0)
    first = reflection.picture
    shown = reflection.show(NOBODY)
    assert not shown.found and shown.picture is first
    seen = reflection.show(camera(1, raise_r=1.2))
    assert seen.found and not reflection.show(NOBODY).found
    assert reflection.picture is seen.picture


def test_people_do_not_see_each_other(mirror, monkeypatch):
    monkeypatch.setattr(mirror_module, "SLOWEST", 25.0)  # the clock decides nothing
    monkeypatch.setattr(mirror_module, "FASTEST", 25.0)
    videos = {
        0: [camera(1, raise_r=x, sway=-0.3) for x in np.linspace(0.2, 1.4, 5)],
        3: [camera(4, raise_l=x, sway=0.3) for x in np.linspace(1.4, 0.2, 5)],
    }
    alone = {}
    for seed, frames in videos.items():
        reflection = mirror.open_on_puppet(seed)
        alone[seed] = [reflection.show(frame).picture for frame in frames]
    both = {seed: mirror.open_on_puppet(seed) for seed in videos}
    for i in range(5):
        for seed, reflection in both.items():
            np.testing.assert_array_equal(reflection.show(videos[seed][i]).picture, alone[seed][i])


def test_the_smoothing_goes_by_the_clock(mirror, monkeypatch):
    rates, times = [], iter(np.arange(100) * 0.05)

    class Clock:
        perf_counter = staticmethod(lambda: float(next(times)))

    reflection = mirror.open_on_puppet(0)
    monkeypatch.setattr(mirror_module, "time", Clock)
    for _ in range(3):
        reflection.show(NOBODY)  # looks at the clock twice
        rates.append(reflection._follow.fps)
    assert rates == pytest.approx([25, 10, 10])


def test_the_person_of_a_picture_moves(mirror):
    picture = draw_puppet(Identity.from_seed(2), STANDING | {"spread": 0.2}, (256, 256))[0]
    reflection = mirror.open_on_person(picture)
    shown = [reflection.show(camera(1, raise_r=angle)).picture for angle in (0.3, 1.3)]
    assert (shown[0] != shown[1]).any()
