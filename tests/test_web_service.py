"""The service, without a browser: what an animation reports, what it writes, and how it ends."""

import json
import shlex
import shutil

import numpy as np
import pytest
from web_files import write_files

import sample
from mafx import inputs, media
from mafx.densepose.finders import FinderOptions
from mafx.densepose.people import Person
from mafx.errors import InputError
from mafx.program import Progress
from mafx.sources import find_sources
from mafx.web import service as service_module
from mafx.web.folders import TemporaryFolder
from mafx.web.links import Choices
from mafx.web.service import PREVIEW_SHARE, Service
from mafx.web.turns import CancelledError, Job

LONG = 300  # seconds, the first compilation among them


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    service = Service(find_sources(None), TemporaryFolder(tmp_path_factory.mktemp("page")))
    yield service
    service.close()


def uploaded(service, name, person="anna"):
    """A file of `write_files` that somebody has brought."""
    return write_files(service.folder.new(person)) / name


def watched(monkeypatch, job_of):
    """A job's result, and all updates that it has reported."""
    seen = []
    report = Job.report
    monkeypatch.setattr(Job, "report", lambda job, update: (seen.append(update), report(job, update)))
    return job_of().wait(LONG), seen


def test_a_puppet_is_animated_step_by_step_with_previews(service, monkeypatch):
    choices = Choices(frames=3, steps=3)
    result, seen = watched(monkeypatch, lambda: service.animate("anna", choices, None, None))
    steps = [(u.done, u.total) for u in seen if u.part == "steps"]
    assert sorted(set(steps)) == [(1, 3), (2, 3), (3, 3)]
    decoded = [(u.done, u.total) for u in seen if u.part == "decoding"]
    assert decoded == [(1, 3), (2, 3)]
    previews = [u.preview for u in seen if u.part == "steps" and u.preview is not None]
    assert all(x.shape[0] == 256 and x.shape[1] in (512, 768) for x in previews)  # two or three frames
    assert all(u.seconds_left is not None for u in seen if u.part == "steps" and u.done > 1)
    video, fps = media.read_video(result.video)
    assert video.shape == (3, 256, 256, 3) and fps == 12
    grid, _ = media.read_video(result.grid)
    assert grid.shape == (3, 256, 3 * 256, 3)
    assert np.abs(grid[:, :, 512:].astype(int) - video).mean() < 6
    near = [
        np.abs(media.resize(x[:, 256:512], (32, 32)).astype(int) - media.resize(video[1], (32, 32))).mean()
        for x in previews
    ]
    assert near[-1] < 30, near
    assert service.folder.is_open(result.video, "anna") and not service.folder.is_open(result.video, "ben")


def test_the_json_repeats_it_bit_by_bit(service, tmp_path, monkeypatch):
    reference, motion = uploaded(service, "person.png"), uploaded(service, "motion.mp4")
    choices = Choices(frames=4, steps=2, guidance=1.5, sampler="euler", seed=3, size="32x32")
    result = service.animate("anna", choices, reference, motion).wait(LONG)
    record = json.loads(result.record.read_text())
    assert record["settings"]["steps"] == 2 and record["settings"]["sampler"] == "euler"
    assert record["motion"]["frames"] == 4 and record["inputs"]["motion"] == str(motion)
    for file in (reference, motion):
        shutil.copy(file, tmp_path)
    monkeypatch.chdir(tmp_path)
    python, script, *arguments = shlex.split(record["command"])
    assert (python, script) == ("python", "sample.py")
    sample.main([*arguments, "--cache", "", "--out", "again.mp4"])
    assert (tmp_path / "again.mp4").read_bytes() == result.video.read_bytes()


@pytest.mark.parametrize("part", ["steps", "decoding"])
def test_a_job_ends_within_a_step_or_a_frame_of_its_cancelling(service, monkeypatch, part):
    seen, report = [], Job.report

    def cancelling(job, update):
        seen.append((update.part, update.done))
        if update.part == part and update.done == 2:
            service.turns.cancel("anna")
        report(job, update)

    monkeypatch.setattr(Job, "report", cancelling)
    with pytest.raises(CancelledError):
        service.animate("anna", Choices(frames=5, steps=4), None, None).wait(LONG)
    assert seen[-1] == (part, 2)


def test_what_does_not_fit_is_said_before_it_waits_or_before_it_loads(service):
    text = service.folder.new("anna") / "text.png"
    text.write_text("not a picture")
    own = uploaded(service, "person.png", "ben")
    for choices, reference, message in (
        (Choices(), text, "expected a picture"),
        (Choices(), own, "upload it again"),  # another person's
        (Choices(model="better"), None, "expected one of the models bundled, found 'better'"),
    ):
        with pytest.raises(InputError, match=message):
            service.animate("anna", choices, reference, None)
    with pytest.raises(InputError, match="divisible by"):
        service.animate("anna", Choices(size="33x32"), None, None).wait(LONG)


def test_people_are_not_looked_for_where_nothing_can_find_them(service):
    job = service.animate("anna", Choices(), None, uploaded(service, "noise.mp4"))
    with pytest.raises(InputError, match="--fetch_networks"):
        job.wait(LONG)


def test_poses_of_people_are_drawn_frame_by_frame_and_that_can_be_cancelled(service, monkeypatch):
    class Finder:
        """Sees a person of one part in the middle of each frame."""

        warm_up = 0

        def find(self, frames):
            for _ in frames:
                yield [Person((8, 8, 16, 32), np.full((32, 16), 2, np.uint8), 0.9)]

    monkeypatch.setattr(inputs, "make_finder", lambda *_: (Finder(), {"finder": "a test"}))
    monkeypatch.setattr(service, "finder", FinderOptions())
    video = uploaded(service, "noise.mp4")
    result, seen = watched(monkeypatch, lambda: service.animate("anna", Choices(frames=4), None, video))
    assert [(u.done, u.total) for u in seen if u.part == "poses"] == [(i, 4) for i in range(1, 5)]
    assert media.read_video(result.poses)[0].shape == (4, 48, 32, 3)
    assert f"--video {video.name}" in json.loads(result.record.read_text())["command"]

    monkeypatch.setattr(Job, "is_cancelled", property(lambda job: job.update.part == "poses" and job.update.done == 2))
    with pytest.raises(CancelledError):
        service.animate("anna", Choices(frames=4), None, video).wait(LONG)


def test_labels_in_other_colours_are_redrawn(service):
    from mafx import densepose  # noqa: PLC0415

    motion, fps = media.read_video(uploaded(service, "motion.mp4"))
    greys = np.repeat(densepose.read_labels(motion)[0][..., None], 3, axis=-1).astype(np.uint8)
    path = service.folder.new("anna") / "iuv.mkv"
    media.write_video(path, greys, fps)
    result = service.animate("anna", Choices(frames=4), None, path).wait(LONG)
    drawn, _ = media.read_video(result.poses)
    assert densepose.check_motion(drawn).complaint is None and result.poses in result.files


@pytest.mark.parametrize("cost", [0.001, 0.02, 0.5, 5.0])
def test_previews_take_a_tenth_of_the_steps_time_at_most(monkeypatch, cost):
    clock = [0.0]
    monkeypatch.setattr(service_module.time, "perf_counter", lambda: clock[0])
    spent = []

    def decode(frame):
        clock[0] += cost
        spent.append(cost)
        return np.zeros((4, 4, 3), np.uint8)

    watch = service_module.Watch(Job("anna", lambda job: None), frames=16, zoom=1)
    for step in range(1, 41):
        clock[0] += 1.0
        watch.see(Progress("steps", step, 40, decode))
    assert len(spent) >= 2 and sum(spent[2:]) <= PREVIEW_SHARE * 40  # two of them tell what one costs
    assert cost > 1 or len(spent) > 4  # there are more of them where they are cheap


def test_sub_folders_are_models_and_others_are_left_out(tmp_path, published, caplog):
    (tmp_path / "weights").symlink_to(published)
    (tmp_path / "notes").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    found = find_sources(str(tmp_path))
    assert list(found) == ["bundled", "weights"]
    assert found["weights"].flags == ("--pretrained", str(tmp_path / "weights"))
    assert "notes is left out" in caplog.text and "run is left out" in caplog.text
    with pytest.raises(InputError, match="found none"):
        find_sources(str(tmp_path / "notes"))
