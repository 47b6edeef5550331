"""The first tab of the page: a picture and a driving video in, a video out."""

import asyncio
import html
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from mafx.diffusion.samplers import SAMPLERS
from mafx.errors import InputError
from mafx.media import Size
from mafx.web.asking import File, data_url, path_of, person_who_asks, refusal, sentence, turn_of
from mafx.web.links import KINDS, MOST_FRAMES, MOST_STEPS, Choices, from_query, make_choices, to_query
from mafx.web.service import Result, Service
from mafx.web.turns import CancelledError, Job, Update
from mafx.web.uploads import check_driving, check_picture

POLL_SECONDS = 0.1
DEFAULTS = Choices()
HEARTBEAT = 2.0  # seconds, after which an unchanged update is sent again: only then it is seen that somebody has left
PREVIEW_QUALITY = 80  # of 100, WebP
PLAYABLE = frozenset({".mp4", ".m4v", ".mov", ".webm"})  # suffixes of what browsers play
SIZES = 1, 1.5, 2  # times the model's own, which are offered
SEEN = {
    "starting": "Starting. The first animation of a size compiles it, which takes a while.",
    "reading": "Reading the files.",
    "loading": "Loading the model.",
    "writing": "Writing the video.",
}


def add_tab(service: Service) -> None:
    """Add the tab."""
    with gr.Tab("Animate"), gr.Row():
        with gr.Column(min_width=320):
            form = _Form(service)
        with gr.Column(min_width=320):
            progress = gr.HTML(_line("Press Animate: the puppet needs no upload."), elem_id="progress")
            video = gr.Video(label="Result", autoplay=True, loop=True, interactive=False, elem_id="result")
            grid = gr.Video(label="Reference | motion | result", loop=True, interactive=False, elem_id="grid")
            files = gr.Files(label="Videos, and the JSON that repeats them", interactive=False)
            link = gr.Textbox(label="Link to these settings", buttons=["copy"], interactive=False, elem_id="link")
    _connect(form, link, _Handlers(service), [video, grid, files, progress])


class _Form:
    """What is filled in. `settings` are the components of the fields of `Choices`, in the order of `KINDS`."""

    def __init__(self, service: Service):
        source, suited = service.source(), service.suited()
        picture, motion = service.puppet(DEFAULTS.seed, source.size, DEFAULTS.frames)
        narrow: dict[str, Any] = {"min_width": 150}
        with gr.Row():
            self.reference = gr.Image(
                picture, label="Reference", type="filepath", sources=["upload"], height=240, **narrow
            )
            self.driving = gr.Video(
                motion, label="Driving", sources=["upload"], height=240, loop=True, autoplay=True, **narrow
            )
        self.verdict = gr.HTML(elem_id="verdict")
        self.model = gr.Dropdown(list(service.sources), value=next(iter(service.sources)), label="Model")
        with gr.Row():
            frames = gr.Slider(1, MOST_FRAMES, DEFAULTS.frames, step=1, label="Length in frames", **narrow)
            size = gr.Dropdown(
                _sizes(source.size),
                value=_text(source.size),
                label="Size (rows x columns)",
                allow_custom_value=True,
                **narrow,
            )
        with gr.Row():
            steps = gr.Slider(1, MOST_STEPS, suited.steps, step=1, label="Steps", **narrow)
            guidance = gr.Slider(0, 20, suited.guidance_scale, step=0.1, label="Guidance", **narrow)
        with gr.Row():
            sampler = gr.Dropdown(list(SAMPLERS), value=suited.sampler, label="Sampler", **narrow)
            seed = gr.Number(DEFAULTS.seed, label="Seed", precision=0, minimum=0, **narrow)
        with gr.Row():
            self.start = gr.Button("Animate", variant="primary", elem_id="animate", **narrow)
            self.cancel = gr.Button("Cancel", elem_id="cancel", **narrow)
        self.settings = [self.model, size, frames, steps, guidance, sampler, seed]


def _connect(form: _Form, link: gr.Textbox, handlers: "_Handlers", outputs: list) -> None:
    """What is called when something is filled in or pressed."""
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
    raw: dict[str, Any] = quiet | {"preprocess": False}  # files are not opened before they are checked
    files = [form.reference, form.driving]
    shown = [*files, form.verdict, link]
    gr.on(None, handlers.open_link, None, [*form.settings, *shown], **quiet)
    changed = [component.input for component in form.settings if component is not form.model]
    gr.on(changed, handlers.refresh, [*files, *form.settings], shown, trigger_mode="always_last", **raw)
    chosen = form.model.input(handlers.suit, form.settings, form.settings, **raw)
    chosen.then(handlers.refresh, [*files, *form.settings], shown, **raw)
    for file, look in zip(files, (handlers.look_at_picture, handlers.look_at_video), strict=True):
        file.upload(look, file, [file, form.verdict], **raw)
    started = form.start.click(
        handlers.animate,
        [*files, *form.settings],
        outputs,
        api_name="animate",
        show_progress="hidden",
        concurrency_limit=None,  # the service has the queue
        preprocess=False,
    )
    started.failure(lambda: _line("Stopped."), None, outputs[-1], **quiet)
    form.cancel.click(handlers.cancel, None, None, **quiet)


class _Handlers:
    """What Gradio calls. Values come as the page sends them, and are checked by `links` and `uploads`."""

    def __init__(self, service: Service):
        self._service = service

    def open_link(self, request: gr.Request) -> list:
        """The choices of the link by which the page was opened."""
        try:
            choices = from_query(request.request.url.query)
            self._service.source(choices.model)
        except InputError as error:
            problem = _line(f"This link is not used: {sentence(error)}", "problem")
            return [*self._fill(DEFAULTS), gr.skip(), gr.skip(), problem, _link(DEFAULTS, request)]
        return [*self._fill(choices), *self._shown(choices, None, None, request)]

    def suit(self, model, size, frames, steps, guidance, sampler, seed) -> list:
        """The settings that suit a model that was chosen just now."""
        return self._fill(make_choices({"model": model, "frames": frames, "seed": seed}))

    def refresh(
        self, reference: File, driving: File, model, size, frames, steps, guidance, sampler, seed, request: gr.Request
    ) -> list:
        """The puppets, the link, and what does not fit, after a setting was changed."""
        try:
            choices = _choices(model, size, frames, steps, guidance, sampler, seed)
            return self._shown(choices, reference, driving, request)
        except InputError as error:
            return [gr.skip(), gr.skip(), _line(sentence(error), "problem"), ""]

    def look_at_picture(self, picture: File, request: gr.Request) -> list:
        """What is said of an uploaded picture; it goes where it cannot be used."""
        try:
            h, w = check_picture(self._uploaded(picture, request))
        except InputError as error:
            return [None, _line(f"The picture is not used: {sentence(error)}", "problem")]
        return [gr.skip(), _line(f"The picture has {h}x{w} pixels (rows x columns).")]

    def look_at_video(self, video: File, request: gr.Request) -> list:
        """What is said of an uploaded driving video; it goes where it cannot be used."""
        try:
            driving = check_driving(self._uploaded(video, request))
        except InputError as error:
            return [None, _line(f"The video is not used: {sentence(error)}", "problem")]
        seen = "" if driving.path.suffix.lower() in PLAYABLE else " Browsers do not play this kind of file; it is used."
        return [gr.skip(), _line(f"{driving.verdict}{seen}")]

    async def animate(
        self,
        request: gr.Request,
        reference: File = None,
        driving: File = None,
        model="",
        size="",
        frames=DEFAULTS.frames,
        steps=None,
        guidance=None,
        sampler=None,
        seed=DEFAULTS.seed,
    ) -> AsyncIterator[list]:
        """Animate a reference picture by a driving video.

        Returns: The video, the video beside the reference and the motion, all files, and what is shown meanwhile.
        """
        try:
            choices = _choices(model, size, frames, steps, guidance, sampler, seed)
            picture, video, person = path_of(reference), path_of(driving), person_who_asks(request)
            job = await asyncio.to_thread(self._service.animate, person, choices, picture, video, turn_of(request))
        except InputError as error:
            raise refusal(error) from error
        try:
            async for update in _watch(job):
                yield [gr.skip(), gr.skip(), gr.skip(), _progress(update)]
            yield _finished(job)
        finally:
            self._service.turns.withdraw(job)  # whoever leaves needs it no more

    def cancel(self, request: gr.Request) -> None:
        """Cancel the animations of whoever asks."""
        self._service.turns.cancel(turn_of(request))

    # -- Parts of the above

    def _uploaded(self, file: File, request: gr.Request) -> Path:
        path = path_of(file)
        if path is None:
            raise InputError("expected a file, found none")
        return self._service.folder.check(path, person_who_asks(request))

    def _fill(self, choices: Choices) -> list:
        """Values for the components of the settings."""
        source = self._service.source(choices.model)
        settings = choices.settings(source.settings)
        size = gr.update(choices=_sizes(source.size), value=choices.size or _text(source.size))
        model = choices.model or next(iter(self._service.sources))
        return [model, size, choices.frames, settings.steps, settings.guidance_scale, settings.sampler, settings.seed]

    def _shown(self, choices: Choices, reference: File, driving: File, request: gr.Request) -> list:
        """The files, what is said of the driving video, and the link.

        A puppet's picture and motion stand in where nothing of the person's own is there.
        """
        size = choices.size_or(self._service.source(choices.model).size)
        puppet = self._service.puppet(choices.seed, size, choices.frames)
        paths = [path_of(file) for file in (reference, driving)]
        own = [None if path is None or self._service.is_puppet(path) else path for path in paths]
        files = [gr.skip() if kept else str(new) for kept, new in zip(own, puppet, strict=True)]
        moved = self._service.folder.check(own[1], person_who_asks(request)) if own[1] else puppet[1]
        verdict = check_driving(moved).verdict
        return [*files, _line(verdict if own[1] else f"A drawn puppet. {verdict}"), _link(choices, request)]


async def _watch(job: Job) -> AsyncIterator[Update]:
    """The updates of a job until it is finished. Each may stand for several."""
    sent, since = None, 0.0
    clock = asyncio.get_running_loop().time
    while not job.is_finished and not job.is_cancelled:
        update = job.update
        if update is not sent or clock() - since > HEARTBEAT:
            sent, since = update, clock()
            yield update
        await asyncio.sleep(POLL_SECONDS)


def _finished(job: Job) -> list:
    """What is shown of a job that is finished, or that nobody wants any more."""
    if job.is_cancelled or isinstance(job.error, CancelledError):
        return [gr.skip(), gr.skip(), gr.skip(), _line("Cancelled.")]
    if isinstance(job.error, InputError):
        raise refusal(job.error)
    if job.error is not None:
        raise gr.Error("Something went wrong; the server's log says what.", duration=None, print_exception=False)
    result: Result = job.result
    return [
        str(result.video),
        str(result.grid),
        [str(path) for path in result.files],
        _line(f"Done in {result.seconds:.0f} s."),
    ]


# -- Values


def _choices(model, size, frames, steps, guidance, sampler, seed) -> Choices:
    return make_choices(dict(zip(KINDS, (model, size, frames, steps, guidance, sampler, seed), strict=True)))


def _link(choices: Choices, request: gr.Request) -> str:
    base, query = str(request.request.base_url), to_query(choices)
    return f"{base.partition('gradio_api')[0]}{'?' if query else ''}{query}"


def _text(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def _sizes(size: Size) -> list[str]:
    """The sizes that are offered for a model's own."""
    return [_text((round(size[0] * times), round(size[1] * times))) for times in SIZES]


# -- Words


def _line(text: str, kind: str = "note") -> str:
    return f'<p class="mafx-{kind}" role="status">{html.escape(text)}</p>'


def _progress(update: Update) -> str:
    """An update as HTML: a sentence, a bar, and the preview."""
    share = f' value="{update.done / update.total:.3f}"' if update.total else ""
    bar = f'<progress aria-label="Progress"{share}></progress>'
    return _line(_sentence_of(update)) + bar + _picture(update.preview)


def _sentence_of(update: Update) -> str:
    if update.part == "waiting":
        return f"Waiting: {update.done} before you." if update.done else "Waiting: you are next."
    if not update.total:
        return SEEN[update.part]
    left = "" if update.seconds_left is None else f", {update.seconds_left:.0f} s left"
    what = {"poses": "Drawing poses, frame", "steps": "Step", "decoding": "Decoding frame"}[update.part]
    return f"{what} {update.done} of {update.total}{left}"


def _picture(preview: np.ndarray | None) -> str:
    if preview is None:
        return ""
    source = data_url(preview, "webp", quality=PREVIEW_QUALITY)
    return f'<img class="mafx-preview" alt="Preview of some frames" src="{source}">'
