"""What sample.py does: from files to a video, from a run to its scores, from settings to compiled programs."""

import contextlib
import dataclasses
import json
import logging
import shlex
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mafx import media
from mafx.compiling import announce_compilation
from mafx.data.datasets import find_clips
from mafx.data.examples import ExampleOptions
from mafx.errors import InputError, memory_advice
from mafx.evaluation.features import MetricNetworks
from mafx.evaluation.protocol import data_facts, evaluate, read_metrics
from mafx.evaluation.summary import compare, table
from mafx.inputs import DEFAULT_FRAMES, FileRequest, read_inputs
from mafx.media import Size
from mafx.model import Model, abstract_model
from mafx.program import Program, plan
from mafx.settings import Settings
from mafx.sources import Source
from mafx.stamps import compare_facts
from mafx.training.checkpoints import find_step

log = logging.getLogger("mafx")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """An animation whose files are read, and that is planned. No weights are loaded yet.

    Attributes:
      request: What is animated, and where it is written.
      source: The model.
      reference: uint8 `H W 3`.
      motion: uint8 `f H W 3`.
      fps: Frames per second.
      program: Its model has no parameters, see `program_of`.
    """

    request: FileRequest
    source: Source
    reference: np.ndarray
    motion: np.ndarray
    fps: Fraction
    program: Program

    @property
    def zoom(self) -> int:
        """How many times the video is enlarged when it is written."""
        return self.request.zoom_at(self.program.size)

    def program_of(self, model: Model) -> Program:
        """The program, with the parameters of the loaded model."""
        return dataclasses.replace(self.program, model=model)

    def grid(self, video: np.ndarray) -> np.ndarray:
        """Reference, motion and result side by side."""
        return media.side_by_side(self.reference, self.motion, video)

    def write(self, out: Path, video: np.ndarray) -> None:
        """Write a video `f H W 3`, enlarged."""
        media.write_video(out, media.enlarge(video, self.zoom), self.fps)

    def facts(self, model: Model, command: str, seconds: float) -> dict[str, Any]:
        """What is needed to repeat it, for JSON."""
        request = self.request
        return {
            "command": command,
            "model": {"name": self.source.name} | model.stamp(),
            "inputs": {"reference": request.reference, "motion": request.motion, "video": request.video},
            "align": request.align,
            "outs": [str(out) for out in request.outs],
            "motion": {"frames": len(self.motion), "stride": request.stride, "fps": float(self.fps)},
            "size": self.program.size,
            "fit": request.fit,
            "zoom": self.zoom,
            "settings": dataclasses.asdict(self.program.settings),
            "versions": {"jax": jax.__version__, "numpy": np.__version__},
            "device": jax.devices()[0].device_kind,
            "seconds": round(seconds, 1),
        }


def prepare(request: FileRequest, source: Source, settings: Settings, memory: float | None = None) -> Prepared:
    """Read what is animated, and plan it.

    Raises:
      InputError: For files that cannot be read, and for settings that do not fit, the `memory` among them.
    """
    size = request.size or source.size
    reference, motion, fps = read_inputs(request, size, settings.seed)
    # Planned before minutes of loading, so that what does not fit is said at once. A plan needs no parameters.
    unloaded = Model(source.config, {}, schedule=source.schedule, size=source.size)
    program = plan(unloaded, settings, size, len(motion), local_mesh(), memory=memory)
    return Prepared(request=request, source=source, reference=reference, motion=motion, fps=fps, program=program)


def animate_files(
    request: FileRequest, source: Source, settings: Settings, dtype: str, memory: float | None = None
) -> None:
    """Animate, and write the video with a JSON file beside it that has what is needed to repeat it.

    Raises:
      InputError: For files that cannot be read or written, and for settings that do not fit, the `memory` among them.
    """
    made = [path for path in (request.drawn, request.alignment) if path is not None]
    record = check_outputs([*request.outs, *made], request.overwrite)
    prepared = prepare(request, source, settings, memory)
    began = time.perf_counter()
    model = source.load(dtype)
    log.info("Loaded %s in %.0f s.", source.name, time.perf_counter() - began)

    began = time.perf_counter()
    animation = prepared.program_of(model).run(prepared.reference, prepared.motion)
    video, seconds = media.to_uint8(animation.video), time.perf_counter() - began
    shown = prepared.grid(video) if request.grid else video
    with rescue(video, [record.parent, Path(), Path(tempfile.gettempdir())]):
        for out in request.outs:
            prepared.write(out, shown)
        facts = prepared.facts(model, shlex.join(["python", *sys.argv]), seconds)
        record.write_text(json.dumps(facts, indent=2) + "\n")
    (H, W), zoom = prepared.program.size, prepared.zoom
    what = f"{len(video)} frames of {H}x{W}" + (f", enlarged {zoom} times" if zoom > 1 else "")
    outs = " and ".join(map(str, request.outs))
    log.info("Wrote %s: %s, %g per second, in %.0f s. How to repeat it: %s", outs, what, prepared.fps, seconds, record)


def check_outputs(outs: Sequence[Path], overwrite: bool) -> Path:
    """The JSON file beside the first output. Raises InputError for what cannot or must not be written.

    It is `one.json` for `one.mp4`. Where that is there already, of a `one.gif` perhaps, it is `one.mp4.json`.
    """
    for out in outs:
        media.check_writable(out)
    record = outs[0].with_name(f"{outs[0].stem}.json")
    if record.exists() and not outs[0].exists():
        record = outs[0].with_name(f"{outs[0].name}.json")
    for path in (*outs, record):
        if path.exists() and not overwrite:
            raise InputError(f"{path} exists; choose another --out or give --overwrite")
    return record


@contextlib.contextmanager
def rescue(video: np.ndarray, folders: Sequence[Path]) -> Iterator[None]:
    """Where a video cannot be written after all, keep its frames in the first of some folders that takes them."""
    try:
        yield
    except (InputError, OSError) as error:
        kept = _keep_frames(video, folders)
        raise InputError(f"{error}; the frames are not lost: numpy.load({str(kept)!r})['video']") from error


def _keep_frames(video: np.ndarray, folders: Sequence[Path]) -> Path:
    failures = []
    for folder in folders:
        path = folder.absolute() / f"frames-{uuid.uuid4().hex[:8]}.npz"
        try:
            np.savez_compressed(path, video=video)
        except OSError as error:
            failures.append(str(error))
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)  # what a full disk has taken of it
        else:
            return path
    raise InputError(f"cannot write the frames anywhere: {'; '.join(failures)}")


def evaluate_run(
    source: Source,
    settings: Settings,
    dtype: str,
    *,
    workdir: Path,
    checkpoint: str,
    split: str,
    out: Path,
    options: ExampleOptions,
    clips: int | None,
    frames: int | None,
    metric_networks: Path | None,
    against: Path | None,
    memory: float | None = None,
    overwrite: bool = False,
) -> None:
    """Animate clips of a run's data, and write and log how far they are from the truth, see `mafx.evaluation`.

    Raises:
      InputError: Where the clips or the checkpoint are not there, `out` has results of another model or other settings,
        or `against` was made with other data.
    """
    if source.data is None:
        raise InputError(f"expected a model whose data is known, found {source.name}")
    chosen = find_clips(source.data, split)[:clips]
    step = find_step(workdir, checkpoint)
    other = read_metrics(against) if against else None
    if other is not None:
        facts = data_facts(chosen, frames, options)
        compare_facts(other["settings"], facts, f"the evaluation {against}", "evaluate both alike")
    if metric_networks is None:
        log.info("Without LPIPS, FID, FID-VID and FVD: --metric_networks says where their networks are.")
    metrics = evaluate(
        source.load(dtype),
        chosen,
        out,
        options=options,
        frames=frames,
        settings=dataclasses.asdict(settings),
        networks=MetricNetworks(metric_networks),
        memory=memory,
        mesh=local_mesh(),
        overwrite=overwrite,
    )
    title = "Step %d, %d clips: mean and 95 %% interval over clips\n\n%s"
    log.info(title, step, len(chosen), table(metrics["mean"]))
    if other is not None:
        log.info("Against %s, clip by clip\n\n%s", against, table(compare(metrics, other)))


def compile_only(
    source: Source,
    settings: Settings,
    dtype: str,
    size: Size | None,
    frames: int | None,
    memory: float | None = None,
) -> None:
    """Compile what an animation runs, for the next start. Neither weights nor pictures are read.

    Raises:
      InputError: Where the animation does not fit the `memory`, or the device's own.
    """
    began = time.perf_counter()
    model = abstract_model(source.config, dtype, source.schedule)
    program = plan(model, settings, size or source.size, frames or DEFAULT_FRAMES, local_mesh(), memory=memory)
    with announce_compilation(), memory_advice(program.what_fits):
        compiled = program.compile()
    log.info("Compiled %d programs in %.0f s.", len(compiled), time.perf_counter() - began)
    if (fit := program.fit()).limited:
        log.info("%s", fit)


def local_mesh() -> Mesh | None:
    """All devices of this process, where there are several."""
    devices = jax.local_devices()
    return Mesh(np.array(devices), ("windows",)) if len(devices) > 1 else None
