"""A tab that looks inside of an animation: a click on a frame shows where that place looks in the reference.

The animation of a person stays in memory, with the latents of its steps, until some others have come. Every look waits
for its turn, as animations do.
"""

import asyncio
import collections
import dataclasses
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from mafx import media
from mafx.errors import InputError
from mafx.inputs import read_inputs
from mafx.inspect.pictures import heat_map, mark, shown, stack
from mafx.inspect.record import Attended, Observation, Places, token_grid
from mafx.inspect.recording import Point, Recording, point_at, record
from mafx.inspect.views import chosen_steps, look_inside, middle_of_person
from mafx.program import plan
from mafx.web.asking import File, path_of, person_who_asks, refusal, turn_of
from mafx.web.links import MOST_FRAMES, MOST_STEPS, Choices, make_choices
from mafx.web.service import Service
from mafx.web.turns import CancelledError, Job, Update
from mafx.web.uploads import check_driving, check_picture

KEPT = 4  # animations, of as many people
STEPS = 5  # by default: one would do for the bundled model, and show little
SIDE = 384  # pixels of the pictures
POLL_SECONDS = 0.2
START = "Press the button: the puppet needs no upload. Then click on the frame."
QUIET: dict[str, Any] = {"show_progress": "hidden", "queue": True, "concurrency_limit": None, "preprocess": False}


@dataclasses.dataclass
class Session:
    """The animation of a person, and what was seen of it last.

    Attributes:
      recording: The animation.
      folder: Where its pictures are written.
      key: Frame, step and place of the last look.
      seen: What it showed.
    """

    recording: Recording
    folder: Path
    key: tuple[int, int, Point] | None = None
    seen: Observation | None = None
    _numbers: Any = dataclasses.field(default_factory=itertools.count)

    def write(self, picture: np.ndarray) -> str:
        """Write a picture under a new name, so that no browser shows an old one."""
        path = self.folder / f"{next(self._numbers)}.png"
        media.write_video(path, [picture], media.DEFAULT_FPS)
        return str(path)

    def attended(self, frame: int, step: int, place: Point) -> dict[str, Attended]:
        """What a place attends, by layer; computed where it is not the last look."""
        recording = self.recording
        if self.key != (frame, step, place) or self.seen is None:
            window, point = recording.window(frame), point_at(place, recording.program.size)
            places = Places([int(np.flatnonzero(window == frame)[0])], [point])
            self.seen, self.key = recording.observe(step, window, places), (frame, step, place)
        return self.seen.mixed


class Sessions:
    """The last animations, one a person."""

    def __init__(self, most: int = KEPT):
        self._most, self._lock = most, threading.Lock()
        self._of: collections.OrderedDict[str, Session] = collections.OrderedDict()

    def keep(self, person: str, session: Session) -> None:
        with self._lock:
            self._of[person] = session
            self._of.move_to_end(person)
            while len(self._of) > self._most:
                self._of.popitem(last=False)

    def get(self, person: str) -> Session:
        """Raises InputError where the person has none, or no longer."""
        with self._lock:
            if person in self._of and not self._of[person].folder.is_dir():
                del self._of[person]  # its pictures were swept away, after an hour
            if person not in self._of:
                raise InputError("expected an animation of yours, found none any more; animate first")
            self._of.move_to_end(person)
            return self._of[person]


# -- Work, which waits for its turn


def make_session(
    service: Service, person: str, choices: Choices, reference: Path | None, driving: Path | None, job: Job
) -> Session:
    """Animate, and keep what it takes to look inside."""
    source, out = service.source(choices.model), service.folder.new(person)
    settings = choices.settings(source.settings)
    size = choices.size_or(source.size)
    request = service.request(choices, reference, driving, out, job)
    job.report(Update(part="reading"))
    reference_picture, motion, _ = read_inputs(request, size, settings.seed)
    job.report(Update(part="loading"))
    program = plan(service.model(choices.model), settings, size, len(motion))

    def tell(step: int, _: np.ndarray) -> None:
        job.report(Update(part="steps", done=step + 1, total=settings.steps))

    job.report(Update(part="starting"))
    return Session(record(program, reference_picture, motion, progress=False, callback=tell), out)


def look(session: Session, frame: int, step: int, place: Point, layer: str, job: Job) -> tuple[str, str, str]:
    """The frame with the place, the heat map on the reference, and what to say of it."""
    job.report(Update(part="looking"))
    recording = session.recording
    mixed = session.attended(frame, step, place)
    if layer not in mixed:
        raise InputError(f"expected one of the layers {', '.join(mixed)}, found {layer!r}")
    weights = mixed[layer].reference[0]
    h, w = grid = token_grid(len(weights), recording.latent_size)
    (H, W), point = recording.program.size, point_at(place, recording.program.size)
    picture = mark(shown(media.to_uint8(recording.animation.video[frame]), SIDE), point)
    heat = heat_map(shown(recording.reference, SIDE), weights, grid)
    y, x = divmod(int(weights.argmax()), w)
    said = (
        f"Place {place[0]},{place[1]} of frame {frame}, at step {step} (time {recording.time(step)}), in {layer}: "
        f"**{weights.sum():.0%}** of its attention goes to the reference, the rest to the frame itself. "
        f"Most of it goes to rows {y * H // h} to {(y + 1) * H // h - 1}, "
        f"columns {x * W // w} to {(x + 1) * W // w - 1}: {weights.max():.0%}."
    )
    return session.write(picture), session.write(heat), said


def all_sheets(session: Session, frame: int, place: Point, job: Job) -> str:
    """The picture of all sheets."""
    job.report(Update(part="looking"))
    inside = look_inside(session.recording, frame, place, chosen_steps(session.recording.steps, STEPS), progress=False)
    return session.write(stack(list(inside.sheets().values())))


# -- The tab


def add_tab(service: Service) -> None:
    """Add the tab."""
    with gr.Tab("Look inside"), gr.Row():
        with gr.Column(min_width=320):
            form = _Form(service)
        with gr.Column(min_width=320):
            view = _View()
    handlers = _Handlers(service)
    places = [view.frame, view.step, view.row, view.column, view.layer]
    seen = [view.row, view.column, view.picture, view.heat, view.said]
    form.start.click(
        handlers.animate,
        form.inputs,
        [form.progress, view.frame, view.step, view.layer, *seen],
        api_name="look_inside",
        **QUIET,
    )
    gr.on(
        [x.input for x in places],
        handlers.look,
        places,
        seen[2:],
        api_name="attention",
        trigger_mode="always_last",
        **QUIET,
    )
    view.picture.select(
        handlers.click, [view.frame, view.step, view.layer], seen, api_visibility="private", trigger_mode="always_last",
        **QUIET,
    )  # fmt: skip
    view.all.click(handlers.sheets, places, view.sheets, api_name="inside_pictures", **QUIET)


class _Form:
    """What is animated."""

    def __init__(self, service: Service):
        default, source = Choices(), service.source()
        picture, motion = service.puppet(default.seed, source.size, default.frames)
        narrow: dict[str, Any] = {"min_width": 150}
        with gr.Row():
            reference = gr.Image(
                str(picture), label="Reference picture", type="filepath", sources=["upload"], height=200, **narrow
            )
            driving = gr.Video(str(motion), label="Driving video", sources=["upload"], height=200, **narrow)
        model = gr.Dropdown(list(service.sources), value=next(iter(service.sources)), label="Model")
        with gr.Row():
            frames = gr.Slider(1, MOST_FRAMES, default.frames, step=1, label="Length in frames", **narrow)
            steps = gr.Slider(1, MOST_STEPS, STEPS, step=1, label="Steps", **narrow)
            seed = gr.Number(default.seed, label="Seed", precision=0, minimum=0, **narrow)
        self.inputs = [reference, driving, model, frames, steps, seed]
        self.start = gr.Button("Animate and look inside", variant="primary", elem_id="inspect")
        self.progress = gr.Markdown(START, elem_id="inspect-progress")


class _View:
    """Where to look, and what is seen."""

    def __init__(self):
        narrow: dict[str, Any] = {"min_width": 110}
        with gr.Row():
            self.frame = gr.Slider(0, 1, 0, step=1, label="Frame", **narrow)
            self.step = gr.Slider(0, 1, 0, step=1, label="Step", **narrow)
        with gr.Row():
            self.row = gr.Number(0, label="Row", precision=0, minimum=0, elem_id="inspect-row", **narrow)
            self.column = gr.Number(0, label="Column", precision=0, minimum=0, elem_id="inspect-column", **narrow)
            self.layer = gr.Dropdown([], label="Layer", elem_id="inspect-layer", min_width=220)
        with gr.Row():
            self.picture = _picture("The frame: click on a place", "inspect-frame")
            self.heat = _picture("Where it looks in the reference", "inspect-heat")
        self.said = gr.Markdown(elem_id="inspect-said")
        self.all = gr.Button("All pictures of this place")
        self.sheets = _picture("All pictures", "inspect-sheets", buttons=["download", "fullscreen"])


def _picture(title: str, name: str, buttons: Sequence[str] = ()) -> gr.Image:
    """A picture below its title. Gradio's own label would cover a part that one may want to click on."""
    with gr.Column(min_width=150):
        gr.Markdown(title)
        return gr.Image(
            label=title, show_label=False, interactive=False, type="filepath", buttons=list(buttons), elem_id=name
        )


class _Handlers:
    """What Gradio calls. Values come as the page sends them."""

    def __init__(self, service: Service):
        self._service, self._sessions = service, Sessions()

    async def animate(
        self, reference: File, driving: File, model, frames, steps, seed, request: gr.Request
    ) -> AsyncIterator[list]:
        """Animate a reference picture by a driving video, and look inside.

        Returns: What is said, the frames, the steps, the layers, and a first look at the middle of the person.
        """
        nothing = [gr.skip()] * 8
        try:
            choices = make_choices({"model": model, "frames": frames, "steps": steps, "seed": seed})
            files = self._checked(reference, check_picture, request), self._checked(driving, check_driving, request)
            job = self._submit(request, make_session, self._service, person_who_asks(request), choices, *files)
            try:
                while not job.is_finished:
                    yield [_sentence(job.update), *nothing]
                    await asyncio.sleep(POLL_SECONDS)
                session: Session = job.wait(0)
            finally:
                self._service.turns.withdraw(job)  # whoever leaves needs it no more
            self._sessions.keep(job.person, session)
            first = await self._first_look(session, request)
        except (InputError, CancelledError) as error:
            raise refusal(error) from error
        made = f"{session.recording.frames} frames in {session.recording.steps} steps"
        yield [f"Done: {made}. Click on the frame.", *first]

    async def _first_look(self, session: Session, request: gr.Request) -> list:
        recording = session.recording
        frame = recording.frames // 2
        try:
            place = middle_of_person(recording.motion[frame])
        except InputError:  # nobody is in the middle frame
            H, W = recording.program.size
            place = H // 2, W // 2
        mixed = await self._run(request, lambda job: session.attended(frame, 0, place))
        layers = list(mixed)
        seen = await self._run(request, look, session, frame, 0, place, layers[-1])
        numbers = [
            gr.update(maximum=max(1, recording.frames - 1), value=frame),
            gr.update(maximum=max(1, recording.steps - 1), value=0),
        ]
        return [*numbers, gr.update(choices=layers, value=layers[-1]), *place, *seen]

    async def look(self, frame, step, row, column, layer, request: gr.Request) -> tuple[str, str, str]:
        """Where a place of a frame looks in the reference, of the last animation of whoever asks.

        Returns: The frame with the place, the heat map, and what is to be said of it.
        """
        try:
            session, place = self._sessions.get(turn_of(request)), (_whole(row), _whole(column))
            return await self._run(request, look, session, _whole(frame), _whole(step), place, str(layer))
        except InputError as error:
            raise refusal(error) from error

    async def click(self, frame, step, layer, event: gr.SelectData, request: gr.Request) -> list:
        """The same, of the place that was clicked on in the enlarged picture."""
        try:
            H, W = self._sessions.get(turn_of(request)).recording.program.size
        except InputError as error:
            raise refusal(error) from error
        side = shown(np.zeros((H, W, 3), np.uint8), SIDE).shape
        x, y = event.index
        place = min(H - 1, int(y * H / side[0])), min(W - 1, int(x * W / side[1]))
        return [*place, *await self.look(frame, step, *place, layer, request)]

    async def sheets(self, frame, step, row, column, layer, request: gr.Request) -> str:
        """Everything that `python -m mafx.inspect` shows of a place, in one picture."""
        try:
            session = self._sessions.get(turn_of(request))
            return await self._run(request, all_sheets, session, _whole(frame), (_whole(row), _whole(column)))
        except InputError as error:
            raise refusal(error) from error

    # -- Parts of the above

    def _checked(self, file: File, check: Callable[[Path], Any], request: gr.Request) -> Path | None:
        """Where an uploaded file lies, once it is checked; None where a puppet stands in."""
        path = path_of(file)
        if path is None or self._service.is_puppet(path):
            return None
        check(self._service.folder.check(path, person_who_asks(request)))
        return path

    def _submit(self, request: gr.Request, work: Callable, *arguments: Any) -> Job:
        return self._service.turns.submit(turn_of(request), lambda job: work(*arguments, job))

    async def _run(self, request: gr.Request, work: Callable, *arguments: Any) -> Any:
        """What work returns, once it was its turn."""
        job = self._submit(request, work, *arguments)
        try:
            return await asyncio.to_thread(job.wait)
        finally:
            self._service.turns.withdraw(job)


def _whole(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"expected a whole number, found {str(value)[:40]!r}") from error


def _sentence(update: Update) -> str:
    if update.part == "waiting":
        return f"Waiting: {update.done} before you."
    return f"Step {update.done} of {update.total}." if update.total else f"{update.part.capitalize()}."
