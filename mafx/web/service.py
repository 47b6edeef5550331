"""The service behind the page: it knows the models, keeps the last one loaded, and animates for one person at a time.

Nothing here knows of a browser. A job reports an `Update` after each step and each decoded frame, where it also ends
when nobody wants it any more.
"""

import dataclasses
import functools
import json
import logging
import shlex
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mafx import media
from mafx.data.clips import TEST_SEEDS, PuppetClip
from mafx.densepose.finders import FinderOptions, make_finder
from mafx.densepose.motions import MotionOptions, draw_motion
from mafx.errors import InputError, memory_advice
from mafx.inputs import SMALL_SIDE, FileRequest
from mafx.jobs import Prepared, prepare
from mafx.media import Size
from mafx.model import Model
from mafx.program import Decode, Progress
from mafx.settings import Settings, setting_arguments
from mafx.sources import Source
from mafx.stamps import write_whole
from mafx.web.folders import TemporaryFolder
from mafx.web.links import Choices
from mafx.web.turns import Job, Turns, Update
from mafx.web.uploads import check_driving, check_picture

PREVIEWED = 4  # frames at most that a preview shows
PREVIEW_SHARE = 0.1  # of the time of the steps that previews may take
ADVICE = "choose a smaller size or fewer frames"
NO_FINDER = (
    "expected a DensePose video, found another one, and the networks that find people are not here; whoever serves the "
    "page fetches them once by --fetch_networks"
)
log = logging.getLogger("mafx")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What an animation has written.

    Attributes:
      video: The result.
      grid: Reference, motion and result side by side.
      record: JSON with what is needed to repeat it.
      poses: The motion, where it was drawn from the driving video.
      seconds: That it took.
    """

    video: Path
    grid: Path
    record: Path
    poses: Path | None
    seconds: float

    @property
    def files(self) -> list[Path]:
        """All of them."""
        return [path for path in (self.video, self.grid, self.record, self.poses) if path is not None]


class Service:
    """Animates for many people, one after the other.

    Attributes:
      sources: The models by their names; the first one is the default.
      folder: Where temporary files are.
      turns: Whose turn it is.
      finder: How people are found in videos, None where they cannot be.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        folder: TemporaryFolder,
        *,
        dtype: str = "float32",
        finder: FinderOptions | None = None,
        memory: float | None = None,
    ):
        self.sources, self.folder, self.turns = dict(sources), folder, Turns()
        self.finder = finder
        self._dtype, self._memory = dtype, memory
        self._loading = threading.Lock()
        self._loaded: tuple[str, Model] | None = None

    # -- Models

    def source(self, name: str = "") -> Source:
        """A model's source by its name; empty means the first one. Raises InputError for another name."""
        if name and name not in self.sources:
            raise InputError(f"expected one of the models {', '.join(self.sources)}, found {name!r}")
        return self.sources[name or next(iter(self.sources))]

    def model(self, name: str = "") -> Model:
        """A loaded model. The one that was used last stays loaded."""
        source = self.source(name)
        with self._loading:
            if self._loaded is None or self._loaded[0] != source.name:
                self._loaded = None  # there may not be room for two
                began = time.perf_counter()
                self._loaded = source.name, source.load(self._dtype)
                log.info("Loaded %s in %.0f s.", source.name, time.perf_counter() - began)
            return self._loaded[1]

    def suited(self, name: str = "") -> Settings:
        """The settings that suit a model."""
        return Settings(**self.source(name).settings)

    # -- Puppets, which stand in for files

    def puppet(self, seed: int, size: Size, frames: int) -> tuple[Path, Path]:
        """A puppet's picture and motion, as `mafx.inputs` draws them, enlarged for people to see: public files."""
        zoom = zoom_for(size)
        stem = f"puppet-{seed}-{size[0]}x{size[1]}"
        picture, motion = self.folder.public / f"{stem}.png", self.folder.public / f"{stem}-{frames}.mp4"
        clip = PuppetClip(TEST_SEEDS + seed, TEST_SEEDS + seed, size)
        if not picture.exists():
            media.write_video(picture, media.enlarge(clip.read(np.array([0]))[0], zoom), clip.fps)
        if not motion.exists():
            media.write_video(motion, media.enlarge(clip.read_motion(1 + np.arange(frames)), zoom), clip.fps)
        return picture, motion

    def is_puppet(self, path: Path) -> bool:
        """Whether a file is one of `puppet`."""
        return path.parent == self.folder.public

    # -- Animating

    def animate(
        self, person: str, choices: Choices, reference: Path | None, driving: Path | None, turn: str | None = None
    ) -> Job:
        """Put an animation in the queue.

        Args:
          person: Who wants it. The files are theirs, and so are the results.
          choices: How.
          reference: A picture; None takes a puppet.
          driving: A video; None takes a puppet's motion.
          turn: Who waits for it, where several share the files of a person.

        Returns: A job whose result is a `Result`.

        Raises:
          InputError: A file is not theirs or not what it should be, or they have an animation that waits.
        """
        self.source(choices.model)
        if own := self._own(reference):
            check_picture(self.folder.check(own, person))
        if own := self._own(driving):
            check_driving(self.folder.check(own, person))
        work = functools.partial(self._animate, person, choices, self._own(reference), self._own(driving))
        return self.turns.submit(turn or person, work)

    def _own(self, path: Path | None) -> Path | None:
        """The path of a file that somebody has brought, None for a puppet's."""
        return None if path is None or self.is_puppet(path) else path

    def _animate(self, person: str, choices: Choices, reference: Path | None, driving: Path | None, job: Job) -> Result:
        source, began = self.source(choices.model), time.perf_counter()
        settings = choices.settings(source.settings)
        out = self.folder.new(person)
        job.report(Update(part="reading"))
        request = self.request(choices, reference, driving, out, job)
        prepared = prepare(request, source, settings, self._memory)
        job.report(Update(part="loading"))
        model = self.model(choices.model)
        program = prepared.program_of(model)
        job.report(Update(part="starting"))
        with memory_advice(ADVICE):
            watch = Watch(job, program.frames, prepared.zoom)
            animation = program.run(prepared.reference, prepared.motion, progress=False, watcher=watch.see)
        job.report(Update(part="writing"))
        seconds = time.perf_counter() - began
        return _write(prepared, model, media.to_uint8(animation.video), out, seconds)

    def request(
        self, choices: Choices, reference: Path | None, driving: Path | None, out: Path, job: Job
    ) -> FileRequest:
        """What to animate with choices and checked files, where None stands for a puppet's; `out` takes what is made.

        Raises:
          InputError: The driving video needs networks that are not here.
        """
        files: dict[str, Any] = {}
        total = choices.frames
        if driving is not None:
            checked = check_driving(driving)
            total = min(total, checked.frames or total)
            if checked.kind == "labels":
                drawn, how = out / "motion.mkv", MotionOptions(frames=choices.frames)
                draw_motion(checked.path, drawn, how, functools.partial(make_finder, FinderOptions()))
                files["motion"] = str(drawn)
            else:
                files["video" if checked.kind == "people" else "motion"] = str(checked.path)
        if "video" in files and self.finder is None:
            raise InputError(NO_FINDER)
        size = choices.size_or(self.source(choices.model).size)
        return FileRequest(
            reference=None if reference is None else str(reference),
            **files,
            outs=[out / "animation.mp4"],
            size=size,
            zoom=zoom_for(size),
            frames=choices.frames,
            finder=self.finder or FinderOptions(),
            watcher=lambda done: job.report(Update(part="poses", done=min(done, total), total=total)),
        )

    def warm_up(self) -> Job:
        """Compile what the page offers first, before anybody asks for it."""
        return self.turns.submit("", functools.partial(self._animate, "", Choices(), None, None))

    def close(self) -> None:
        """End all jobs, and remove all temporary files."""
        self.turns.close()
        self.folder.close()


def zoom_for(size: Size) -> int:
    """How many times what is small is enlarged for people to see."""
    return max(1, SMALL_SIDE // max(size))


class Watch:
    """Turns the progress of a program into updates: the time left, and previews that cost little."""

    def __init__(self, job: Job, frames: int, zoom: int):
        self._job, self._frames, self._zoom = job, frames, zoom
        self._part, self._began, self._first = "", time.perf_counter(), 0
        self._preview: np.ndarray | None = None
        self._previewing = 0.0  # seconds that previews took
        self._cost: float | None = None  # seconds of a frame

    def see(self, progress: Progress) -> None:
        now = time.perf_counter()
        if progress.part != self._part:  # counted from here on, since what came before may have compiled
            self._part, self._began, self._first, self._previewing = progress.part, now, progress.done, 0.0
        left = None
        if done := progress.done - self._first:
            left = (now - self._began) / done * (progress.total - progress.done)
        self._job.report(self._update(progress, left))
        if progress.decode and (pictures := self._decode(progress.decode, now)):
            self._preview = media.enlarge(np.concatenate(pictures, axis=1), self._zoom)
            self._job.report(self._update(progress, left))

    def _update(self, progress: Progress, left: float | None) -> Update:
        return Update(
            part=progress.part,
            done=progress.done,
            total=progress.total,
            seconds_left=left,
            preview=self._preview,
        )

    def _decode(self, decode: Decode, now: float) -> list[np.ndarray]:
        """Some frames, evenly spaced: two of them at least, or none, and no more than there is time for."""
        count = min(PREVIEWED, self._frames)
        pictures: list[np.ndarray] = []
        for frame in np.linspace(0, self._frames - 1, count + 2)[1:-1].round().astype(int).tolist():
            if not self._has_time(now, min(2, count) - len(pictures)):
                break
            began = time.perf_counter()
            pictures.append(decode(frame))
            self._note_cost(time.perf_counter() - began)
        return pictures

    def _has_time(self, now: float, frames: int) -> bool:
        """Whether so many frames may be decoded by now, or one. What it costs is not known before two were."""
        if not self._cost:
            return True
        return self._previewing + max(1, frames) * self._cost <= PREVIEW_SHARE * (now - self._began)

    def _note_cost(self, seconds: float) -> None:
        if self._cost is None:  # the first one may compile: that is not the steps' time, nor the next ones'
            self._cost, self._began = 0.0, self._began + seconds
        else:
            self._cost, self._previewing = seconds, self._previewing + seconds


def _write(prepared: Prepared, model: Model, video: np.ndarray, out: Path, seconds: float) -> Result:
    grid, record = out / "grid.mp4", out / "animation.json"
    prepared.write(prepared.request.outs[0], video)
    prepared.write(grid, prepared.grid(video))
    facts = prepared.facts(model, repeat_command(prepared, str(model.dtype)), seconds)
    write_whole(record, json.dumps(facts, indent=2) + "\n")
    poses = out.glob("*motion.mkv")
    return Result(video=prepared.request.outs[0], grid=grid, record=record, poses=next(poses, None), seconds=seconds)


def repeat_command(prepared: Prepared, dtype: str) -> str:
    """The command of sample.py that does the same, called where the files lie: the uploads under their names."""
    request, source, (H, W) = prepared.request, prepared.source, prepared.program.size
    words = ["python", "sample.py", *source.flags, "--dtype", dtype]
    for flag, path in (("reference", request.reference), ("motion", request.motion), ("video", request.video)):
        if path is not None:
            words += [f"--{flag}", Path(path).name]
    if request.finder.weights is not None and request.video is not None:
        words += ["--densepose", str(request.finder.weights)]
    words += ["--size", f"{H}x{W}", "--frames", str(request.frames), "--zoom", str(prepared.zoom)]
    return shlex.join([*words, *setting_arguments(prepared.program.settings, Settings(**source.settings))])
