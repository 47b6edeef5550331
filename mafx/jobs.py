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
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from mafx import media
from mafx.compiling import announce_compilation
from mafx.data.datasets import find_clips
from mafx.data.examples import ExampleOptions
from mafx.errors import InputError, memory_advice
from mafx.evaluation.features import MetricNetworks
from mafx.evaluation.protocol import compare, data_facts, evaluate, read_metrics, table
from mafx.inputs import DEFAULT_FRAMES, FileRequest, read_inputs
from mafx.media import Size
from mafx.model import Model, abstract_model
from mafx.program import plan
from mafx.settings import Settings
from mafx.sources import Source
from mafx.stamps import compare_facts
from mafx.training.checkpoints import find_step

log = logging.getLogger("mafx")


def animate_files(
    request: FileRequest, source: Source, settings: Settings, dtype: str, memory: float | None = None
) -> None:
    """Animate, and write the video with a JSON file beside it that has what is needed to repeat it.

    Raises:
      InputError: For files that cannot be read or written, and for settings that do not fit, the `memory` among them.
    """
    made = [path for path in (request.drawn, request.alignment) if path is not None]
    record = check_outputs([*request.outs, *made], request.overwrite)
    size = request.size or source.size
    reference, motion, fps = read_inputs(request, size, settings.seed)
    # Planned before minutes of loading, so that what does not fit is said at once. A plan needs no parameters.
    unloaded = Model(source.config, {}, schedule=source.schedule, size=source.size)
    planned = plan(unloaded, settings, size, len(motion), local_mesh(), memory=memory)
    began = time.perf_counter()
    model = source.load(dtype)
    log.info("Loaded %s in %.0f s.", source.name, time.perf_counter() - began)

    began = time.perf_counter()
    video = media.to_uint8(dataclasses.replace(planned, model=model).run(reference, motion).video)
    seconds = time.perf_counter() - began
    shown, zoom = media.side_by_side(reference, motion, video) if request.grid else video, request.zoom_at(size)
    with rescue(video, [record.parent, Path(), Path(tempfile.gettempdir())]):
        for out in request.outs:
            media.write_video(out, media.enlarge(shown, zoom), fps)
        facts = {
            "command": shlex.join(["python", *sys.argv]),
            "model": {"name": source.name} | model.stamp(),
            "inputs": {"reference": request.reference, "motion": request.motion, "video": request.video},
            "align": request.align,
            "outs": [str(out) for out in request.outs],
            "motion": {"frames": len(motion), "stride": request.stride, "fps": float(fps)},
            "size": size,
            "fit": request.fit,
            "zoom": zoom,
            "settings": dataclasses.asdict(settings),
            "versions": {"jax": jax.__version__, "numpy": np.__version__},
            "device": jax.devices()[0].device_kind,
            "seconds": round(seconds, 1),
        }
        record.write_text(json.dumps(facts, indent=2) + "\n")
    what = f"{len(video)} frames of {size[0]}x{size[1]}" + (f", enlarged {zoom} times" if zoom > 1 else "")
    outs = " and ".join(map(str, request.outs))
    log.info("Wrote %s: %s, %g per second, in %.0f s. How to repeat it: %s", outs, what, fps, seconds, record)


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
