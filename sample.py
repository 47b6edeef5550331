"""Animate a reference image by a DensePose motion video.

    python sample.py --pretrained DIR --reference person.png --motion densepose.mp4 --out person.mp4

without anything, a puppet, by the small model that comes with mafx:

    python sample.py

or every held-out clip of a training run, measured against the truth, and clip by clip against another evaluation:

    python sample.py --workdir DIR --split test [--against DIR]

Without --reference or --motion, puppets drawn by mafx stand in for what is not given.
"""

import json
import logging
import shlex
import sys
import time
from pathlib import Path

import jax
import ml_collections
import numpy as np
from absl import app, flags
from jax.sharding import Mesh

import mafx
from mafx import densepose, media
from mafx.bundled import bundled_config
from mafx.compiling import keep_programs
from mafx.data.clips import TEST_SEEDS, PuppetClip
from mafx.data.datasets import find_clips
from mafx.data.examples import ExampleOptions
from mafx.diffusion.samplers import SAMPLERS
from mafx.diffusion.schedule import Schedule
from mafx.diffusion.windows import FUSION_WEIGHTS, PLANS
from mafx.errors import InputError, memory_advice
from mafx.evaluation.features import Networks
from mafx.evaluation.protocol import compare, evaluate, read_metrics, table
from mafx.model import Model, abstract_model
from mafx.models.animator import FUSIONS
from mafx.pretrained.configs import read_configs
from mafx.processes import join_processes
from mafx.training.checkpoints import find_step
from mafx.training.loop import load_workdir, model_sizes, read_config

DTYPES = {"float32": "float32", "fp32": "float32", "bfloat16": "bfloat16", "bf16": "bfloat16"}

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "pretrained", None, "folder of published weights; without it, the model in the box, which knows puppets only"
)
flags.DEFINE_string("workdir", None, "folder of a training run, instead of --pretrained")
flags.DEFINE_string("checkpoint", "latest", "of --workdir: a step, latest, or best (by the scores of held-out clips)")
flags.DEFINE_enum(
    "split",
    None,
    ["train", "test"],
    "animate and measure these clips of --workdir's data; results go to --out, or DIR/evaluation",
)
flags.DEFINE_integer("clips", None, "with --split: only the first so many", lower_bound=1)
flags.DEFINE_string(
    "metric_networks",
    None,
    "with --split: folder of the networks that LPIPS, FID, FID-VID and FVD need, see mafx/evaluation/features.py",
)
flags.DEFINE_string(
    "against", None, "with --split: another evaluation of the same clips, to be compared with clip by clip"
)
flags.DEFINE_string("reference", None, "picture of the person; without it, a puppet")
flags.DEFINE_string("motion", None, "DensePose video, or a folder of frames; without it, a puppet's motion")
flags.DEFINE_list(
    "out",
    ["animation.mp4", "animation.gif"],
    "what to write: .mp4, .gif, .webp, or a folder of PNGs where there is no extension",
)
flags.DEFINE_integer(
    "zoom", None, "enlarge what is written so many times; by default small videos to 256 pixels", lower_bound=1
)
flags.DEFINE_bool("overwrite", False, "replace what is at --out")
flags.DEFINE_string(
    "size",
    None,
    "of the video in pixels: one number for a square, or HxW; divisible by 8; by default 512, or what the model was trained at",
)
flags.DEFINE_enum(
    "fit", "crop", media.FITS, "how pictures of another shape are brought to the size: crop and pad keep the aspect"
)
flags.DEFINE_integer("frames", None, "animate only the first so many frames of the motion", lower_bound=1)
flags.DEFINE_integer("stride", 1, "take every so many-th frame of the motion", lower_bound=1)
flags.DEFINE_integer("steps", None, "of the sampler, by default 25, or 1 for the model in the box", lower_bound=1)
flags.DEFINE_float(
    "guidance",
    None,
    "scale of guidance by the reference, by default 7.5, or --workdir's; 1 and below halves the work",
    lower_bound=0,
)
flags.DEFINE_list(
    "guidance_interval",
    ["0", "1000"],
    "diffusion times, from and to below, of the steps that are guided; the others cost half",
)
flags.DEFINE_integer(
    "reuse",
    1,
    "so many steps in a row share what lies below the networks' first level; faster and less exact",
    lower_bound=1,
)
flags.DEFINE_float("control_scale", 1.0, "factor on the influence of the motion")
flags.DEFINE_integer("seed", 0, "of the starting noise, and which puppet stands in", lower_bound=0)
flags.DEFINE_enum("sampler", "ddim", SAMPLERS, "of the diffusion")
flags.DEFINE_float("eta", 0.0, "fresh noise of the ddim sampler, 0 to 1", lower_bound=0, upper_bound=1)
flags.DEFINE_string("prompt", "", "text of the conditional half")
flags.DEFINE_string("negative_prompt", "", "text of the unconditional half")
flags.DEFINE_enum(
    "dtype", None, sorted(DTYPES), "the networks compute in; bfloat16, or float32 on a CPU, where 16 bits gain no speed"
)
flags.DEFINE_integer("window", 16, "frames that go through the networks together", lower_bound=1)
flags.DEFINE_integer("overlap", 4, "frames that neighbouring windows share", lower_bound=0)
flags.DEFINE_integer(
    "windows_at_once", 1, "windows of a long video that go through the networks together, on each device", lower_bound=1
)
flags.DEFINE_string(
    "cache", "~/.cache/mafx", "folder of compiled programs, so that only the first start compiles; empty: none"
)
flags.DEFINE_bool(
    "compile_only",
    False,
    "compile what the other flags ask for, for the next start; neither weights nor pictures are needed",
)
flags.DEFINE_bool(
    "shared_noise", True, "every window starts from the same noise (as published), or every frame from its own"
)
flags.DEFINE_enum("plan", "closed", PLANS, "windows that wrap around the end of the video (as published), or do not")
flags.DEFINE_enum("weights", "uniform", FUSION_WEIGHTS, "of overlapping windows")
flags.DEFINE_enum("fusion", None, FUSIONS, "blocks the reference is mixed into; as the model was trained if not given")
flags.DEFINE_bool("grid", False, "write reference | motion | result side by side")
flags.DEFINE_enum(
    "motion_check",
    "warn",
    ["warn", "error", "off"],
    "when the motion's colours are not DensePose's: say so, stop, or do not look",
)

log = logging.getLogger("mafx")


def main(arguments: list[str]) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)  # instead of absl's format
    for noisy in ("jax", "absl", "orbax"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        if arguments[1:]:
            raise InputError(f"{arguments[1]!r} belongs to no flag; --help lists them")
        join_processes()
        if FLAGS.pretrained and FLAGS.workdir:
            raise InputError("expected one of --pretrained and --workdir, found both")
        if FLAGS.cache:
            keep_programs(Path(FLAGS.cache))
        with memory_advice("take --dtype bfloat16, a smaller --size, or fewer --windows_at_once"):
            compile_only() if FLAGS.compile_only else evaluate_split() if FLAGS.split else animate_one()
    except InputError as error:
        sys.exit(complain(error))


def animate_one() -> None:
    outs = [Path(out) for out in FLAGS.out]
    record = outs[0].with_name(f"{outs[0].stem}.json")
    for path in (*outs, record):
        if path.exists() and not FLAGS.overwrite:
            raise InputError(f"{path} exists; choose another --out or give --overwrite")
    for out in outs:
        media.check_writable(out)

    # -- What goes in
    size = chosen_size()
    stand_in = PuppetClip(TEST_SEEDS + FLAGS.seed, TEST_SEEDS + FLAGS.seed, size)
    reference = media.read_image(FLAGS.reference) if FLAGS.reference else stand_in.read(np.array([0]))[0][0]
    if FLAGS.motion:
        motion, fps = media.read_video(FLAGS.motion, stride=FLAGS.stride, limit=FLAGS.frames)
    else:
        motion, fps = stand_in.read(1 + FLAGS.stride * np.arange(FLAGS.frames or 16))[1], stand_in.fps / FLAGS.stride
    if FLAGS.motion_check != "off" and (complaint := densepose.check_motion(motion).complaint):
        if FLAGS.motion_check == "error":
            raise InputError(complaint)
        log.warning("%s (--motion_check off silences this)", complaint)
    for name, frame in (("reference", reference), ("motion", motion[0])):
        if frame.shape[:2] != size:
            log.info("The %s is %dx%d: %s to %dx%d (rows x columns).", name, *frame.shape[:2], FLAGS.fit, *size)
    reference = media.fit(reference, size, FLAGS.fit)
    motion = np.stack([media.fit(frame, size, FLAGS.fit, densepose.BACKGROUND) for frame in motion])

    # -- What comes out
    model, settings = load_model(), chosen_settings()
    start = time.perf_counter()
    animation = mafx.animate(model, reference, motion, mesh=local_mesh(), **settings)
    seconds = time.perf_counter() - start
    video = media.to_uint8(animation.video)
    shown = media.side_by_side(reference, motion, video) if FLAGS.grid else video
    zoom = FLAGS.zoom or max(1, 256 // max(size))
    for out in outs:
        media.write_video(out, media.enlarge(shown, zoom), fps)
    repeat = {
        "command": shlex.join(["python", *sys.argv]),
        "inputs": {
            "pretrained": FLAGS.pretrained,
            "workdir": FLAGS.workdir,
            "reference": FLAGS.reference,
            "motion": FLAGS.motion,
        },
        "motion": {"frames": len(motion), "stride": FLAGS.stride, "fps": float(fps)},
        "size": size,
        "fit": FLAGS.fit,
        "dtype": str(model.dtype),
        "settings": settings,
        "versions": {"mafx": mafx.__version__, "jax": jax.__version__, "numpy": np.__version__},
        "device": jax.devices()[0].device_kind,
        "seconds": round(seconds, 1),
    }
    record.write_text(json.dumps(repeat, indent=2) + "\n")
    names = " and ".join(map(str, outs))
    log.info(
        "Wrote %s: %d frames of %dx%d at %g per second, in %.0f s. How to repeat it: %s",
        names,
        len(video),
        *size,
        float(fps),
        seconds,
        record,
    )


def evaluate_split() -> None:
    if not FLAGS.workdir:
        raise InputError("--split measures a training run: give its --workdir")
    workdir, config = Path(FLAGS.workdir), read_config(Path(FLAGS.workdir))
    out = Path(FLAGS.out[0]) if FLAGS["out"].present else workdir / "evaluation"
    step = find_step(workdir, FLAGS.checkpoint)
    clips = find_clips(config.data, FLAGS.split)[: FLAGS.clips]
    options = ExampleOptions(size=chosen_size(), stride=FLAGS.stride)
    networks = Networks(Path(FLAGS.metric_networks) if FLAGS.metric_networks else None)
    if not FLAGS.metric_networks:
        log.info("Without LPIPS, FID, FID-VID and FVD: --metric_networks says where their networks are.")
    found = evaluate(load_model(), clips, out, options, FLAGS.frames, {"step": step}, chosen_settings(), networks)
    log.info("Step %d, %d clips: mean and 95 %% interval over clips\n\n%s", step, len(clips), table(found["mean"]))
    if FLAGS.against:
        log.info(
            "Against %s, clip by clip\n\n%s", FLAGS.against, table(compare(found, read_metrics(Path(FLAGS.against))))
        )


def compile_only() -> None:
    """Of the weights of --pretrained only the config files are read."""
    start, config = time.perf_counter(), trained_with()
    sizes, schedule = (
        (model_sizes(config), Schedule(**config.schedule)) if config else read_configs(Path(FLAGS.pretrained))
    )
    model = abstract_model(sizes, chosen_dtype(), schedule)
    programs = mafx.compile_ahead(model, chosen_size(), FLAGS.frames or 16, local_mesh(), **chosen_settings())
    log.info("Compiled %d programs in %.0f s.", sum(map(len, programs.values())), time.perf_counter() - start)


def local_mesh() -> Mesh | None:
    """All devices of this process, where there are several."""
    devices = jax.local_devices()
    return Mesh(np.array(devices), ("windows",)) if len(devices) > 1 else None


def trained_with() -> ml_collections.ConfigDict | None:
    """The config of the model, where mafx trained it."""
    return None if FLAGS.pretrained else read_config(Path(FLAGS.workdir)) if FLAGS.workdir else bundled_config()


def chosen_size() -> media.Size:
    config = trained_with()
    return parse_size(FLAGS.size) if FLAGS.size else tuple(config.data.size) if config else (512, 512)


def chosen_dtype() -> str:
    return DTYPES[FLAGS.dtype] if FLAGS.dtype else "float32" if jax.default_backend() == "cpu" else "bfloat16"


def load_model() -> Model:
    dtype = chosen_dtype()
    if FLAGS.pretrained:
        start = time.perf_counter()
        model = mafx.load_pretrained(FLAGS.pretrained, dtype)
        log.info("Loaded %s in %.0f s.", FLAGS.pretrained, time.perf_counter() - start)
        return model
    if FLAGS.workdir:
        return load_workdir(Path(FLAGS.workdir), dtype, FLAGS.checkpoint)
    log.info("No --pretrained: this is the model in the box. It knows puppets only.")
    return mafx.load_bundled(dtype)


def chosen_settings() -> dict:
    """What `mafx.animate` is asked for."""
    config = trained_with()
    guidance = config.show_guidance if config else 7.5
    return {
        "steps": FLAGS.steps or (25 if FLAGS.pretrained or FLAGS.workdir else 1),
        "guidance_scale": guidance if FLAGS.guidance is None else FLAGS.guidance,
        "guidance_interval": parse_interval(FLAGS.guidance_interval),
        "reuse": FLAGS.reuse,
        "seed": FLAGS.seed,
        "shared_noise": FLAGS.shared_noise,
        "prompt": FLAGS.prompt,
        "negative_prompt": FLAGS.negative_prompt,
        "control_scale": FLAGS.control_scale,
        "window": FLAGS.window,
        "overlap": FLAGS.overlap,
        "windows_at_once": FLAGS.windows_at_once,
        "sampler": FLAGS.sampler,
        "eta": FLAGS.eta,
        "plan": FLAGS.plan,
        "weights": FLAGS.weights,
        "fusion": FLAGS.fusion,
    }


def parse_size(text: str) -> media.Size:
    """Rows and columns of "512" or "768x512"."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdigit() and int(side) > 0 for side in sides):
        raise InputError(f"expected --size as one number or as HxW, found {text!r}")
    if any(int(side) % 8 for side in sides):
        raise InputError(f"expected --size divisible by 8, found {text!r}")
    return int(sides[0]), int(sides[-1])


def parse_interval(words: list[str]) -> list[int]:
    if len(words) != 2 or not all(word.strip().isdigit() for word in words):
        raise InputError(f"expected --guidance_interval as two times, for example 0,700, found {','.join(words)!r}")
    return [int(word) for word in words]


def complain(error: Exception) -> int:
    """One clear sentence, and the exit code of bad input."""
    print(f"sample.py: {error}", file=sys.stderr)
    return 2


def parse_flags(arguments: list[str]) -> list[str]:
    try:
        return FLAGS(arguments)
    except flags.Error as error:
        sys.exit(complain(error))


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
