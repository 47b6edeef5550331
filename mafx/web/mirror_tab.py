"""A tab of the page: the camera's person moves a puppet, or the person of a picture.

The page sends a frame of the camera, waits for what the mirror shows, and only then takes the camera's newest frame
(`mirror.js`). So nothing queues, and pictures are as old as one frame takes. Gradio's own stream of camera frames sends
them at a fixed rate, however long each takes: see docs/mirror.md.
"""

import asyncio
import base64
import dataclasses
import io
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import gradio as gr
import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route

from mafx import media
from mafx.densepose.finders import landmark_networks
from mafx.diffusion.schedule import Schedule
from mafx.errors import InputError, refusals
from mafx.files import Range, check_value
from mafx.settings import Settings
from mafx.web.asking import data_url, person_who_asks
from mafx.web.hall import DroppedError, EndedError, Hall
from mafx.web.links import MOST_STEPS
from mafx.web.mirror import Mirror, Shown
from mafx.web.service import Service

PATH = "/mirror"  # under which the page asks for frames
SCRIPT = Path(__file__).parent / "mirror.js"
FEW_STEPS = 4  # at most, where nothing is chosen
MOST_SEEDS = 2**31 - 1
FIRST_PUPPET = 3  # its clothes are easily told from the wall
LONGEST_SIDE = 2048  # pixels of a frame or a picture; the page sends smaller ones
QUALITY = 95  # of 100, JPEG, of what is shown

CONTROLS = """
<div class="controls">
  <label>Model <select data-part="model"></select></label>
  <label>Puppet <input data-part="seed" type="number" min="0" max="2147483647"></label>
  <label>or a picture <input data-part="picture" type="file" accept="image/*"></label>
  <button data-part="toggle" type="button">Start the camera</button>
</div>
<p data-part="status" class="mafx-note" role="status">Nothing is recorded, and frames go to this page's server only.</p>
<div class="views">
  <video data-part="camera" aria-label="What the camera sees" muted playsinline></video>
  <img data-part="shown" alt="What the mirror shows" hidden>
</div>
<p data-part="numbers" class="mafx-note" aria-live="off"></p>
"""
CSS = """
.controls { display: flex; flex-wrap: wrap; gap: 12px; align-items: end; margin-bottom: 8px; }
.controls label { display: flex; flex-direction: column; font-size: var(--text-sm); }
.controls input, .controls select, .controls button { box-sizing: border-box; height: 42px; padding: 6px 10px;
  border: 1px solid var(--border-color-primary); border-radius: 6px; font-size: var(--text-md);
  background: var(--input-background-fill); color: var(--body-text-color); }
.controls button { padding: 6px 16px; background: var(--button-primary-background-fill);
  color: var(--button-primary-text-color); cursor: pointer; }
.views { display: flex; flex-wrap: wrap; gap: 12px; margin: 8px 0; }
.views > * { flex: 1 1 260px; min-width: 0; height: 420px; object-fit: contain; border-radius: 6px;
  background: var(--background-fill-secondary); }
.views video { transform: scaleX(-1); }
.views img { image-rendering: pixelated; }
.views [hidden] { display: none; }
"""


def add_tab(service: Service) -> list[BaseRoute]:
    """Add the tab, and return the routes that it needs."""
    with gr.Tab("Mirror"):
        gr.HTML(
            html_template=CONTROLS,
            css_template=CSS,
            js_on_load=SCRIPT.read_text("utf-8"),
            elem_id="mirror",
            models=list(service.sources),
            path=PATH,
            seed=FIRST_PUPPET,
        )
    return _Doors(service).routes()


@dataclasses.dataclass(frozen=True)
class Opening:
    """What somebody wants to look into.

    Attributes:
      model: The name of a model of the service; empty means its first one.
      seed: Of a puppet.
      steps: Of the sampler; None means as many as `few_steps` says.
      picture: A picture in place of a puppet, as a data URL; empty where there is none.
    """

    model: str = ""
    seed: Annotated[int, Range(0, MOST_SEEDS)] = FIRST_PUPPET
    steps: Annotated[int, Range(1, MOST_STEPS)] | None = None
    picture: str = ""


@dataclasses.dataclass(frozen=True)
class Frame:
    """A frame of a camera: the name of the mirror, and a picture as a data URL."""

    mirror: str
    picture: str


@dataclasses.dataclass(frozen=True)
class Ending:
    """The name of a mirror that nobody looks into any more."""

    mirror: str


def few_steps(schedule: Schedule, settings: Settings) -> int:
    """How many steps a mirror takes, where being late is worse than being blurred.

    The first answer of a network that answers with the clean picture is a picture, unless it is guided (the table of
    docs/training.md). Others need some more.
    """
    if schedule.prediction == "sample" and settings.guidance_scale <= 1:
        return 1
    return min(settings.steps, FEW_STEPS)


class _Doors:
    """What the page asks for: JSON by POST, answered by JSON."""

    def __init__(self, service: Service):
        self._service, self._hall = service, Hall()
        self._opening = threading.Lock()  # nobody compiles what somebody else compiles just now
        self._mirrors: dict[tuple[str, int], Mirror] = {}  # by model and number of steps; the last one stays

    def routes(self) -> list[BaseRoute]:
        doors = {"open": self._open, "show": self._show, "end": self._end}
        return [Route(f"{PATH}/{name}", _answering(door), methods=["POST"]) for name, door in doors.items()]

    async def _open(self, content: Any, person: str) -> dict:
        """Open a mirror, which takes a while where nobody has opened such a one before."""
        opening = check_value(content, Opening, "the mirror to open")
        name, first = await asyncio.to_thread(self._open_now, opening, person)
        return {"mirror": name, "picture": write_picture(first)}

    def _open_now(self, opening: Opening, person: str) -> tuple[str, np.ndarray]:
        picture = read_picture(opening.picture) if opening.picture else None
        with self._opening:
            mirror = self._mirror(opening)
            reflection = mirror.open_on_puppet(opening.seed) if picture is None else mirror.open_on_person(picture)
        name = self._hall.open(person, lambda frame: reflection.show(read_picture(frame)))
        return name, reflection.picture

    def _mirror(self, opening: Opening) -> Mirror:
        settings = self._service.suited(opening.model)
        source = self._service.source(opening.model)
        steps = opening.steps or few_steps(source.schedule, settings)
        key = source.name, steps
        if key not in self._mirrors:
            files = landmark_networks(self._service.finder)
            model = self._service.model(opening.model)
            self._mirrors = {key: Mirror(model, files, dataclasses.replace(settings, steps=steps))}
        return self._mirrors[key]

    async def _show(self, content: Any, person: str) -> dict:
        """What the mirror shows of a frame."""
        frame = check_value(content, Frame, "the frame")
        shown: Shown = await asyncio.wrap_future(self._hall.offer(frame.mirror, frame.picture))
        milliseconds = {part: round(1000 * x, 1) for part, x in shown.seconds._asdict().items()}
        return {"picture": write_picture(shown.picture), "found": shown.found, "milliseconds": milliseconds}

    async def _end(self, content: Any, person: str) -> dict:
        """Close a mirror."""
        self._hall.end(check_value(content, Ending, "the mirror to end").mirror)
        return {}


def _answering(door: Callable[[Any, str], Awaitable[dict]]) -> Callable[[Request], Awaitable[JSONResponse]]:
    """A door as Starlette calls it. What went wrong is said in a sentence."""

    async def answer(request: Request) -> JSONResponse:
        try:
            with refusals("expected JSON"):
                content = await request.json()
            return JSONResponse(await door(content, person_who_asks(request)))
        except InputError as error:
            return JSONResponse({"error": str(error)}, 400)
        except DroppedError as error:
            return JSONResponse({"error": str(error)}, 409)
        except EndedError as error:
            return JSONResponse({"error": f"{error}; start it again"}, 410)

    return answer


def read_picture(url: str) -> np.ndarray:
    """The picture of a data URL, uint8 `H W 3`.

    Raises:
      InputError: It is not one, or is larger than `LONGEST_SIDE`.
    """
    with refusals("expected a picture as a data URL"):
        file = io.BytesIO(base64.b64decode(url.partition("base64,")[2], validate=True))
    side = max(media.picture_size(file))
    if side > LONGEST_SIDE:
        raise InputError(f"expected sides of at most {LONGEST_SIDE} pixels, found {side}")
    file.seek(0)
    return media.read_image(file)


def write_picture(picture: np.ndarray) -> str:
    """A picture uint8 `H W 3` as a data URL."""
    return data_url(picture, "jpeg", quality=QUALITY, subsampling=0)
