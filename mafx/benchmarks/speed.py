"""How fast everything is on this machine: tables, and the same figures as JSON.

    pip install torch diffusers     # for the PyTorch reference; without them its columns stay empty
    python -m mafx.benchmarks.speed --json speed.json

The default is Stable Diffusion 1.5's size: 256x256 in float32 on a CPU, 512x512 in bfloat16 on an accelerator. Every
part runs in a process of its own. The parts `machine` and `reference` say what the device and the PyTorch reference can
do; parts that are measured after them are set beside them. TFLOP are those of the networks as they are defined, with
every exact saving. A convolution that gets by with fewer multiplications can exceed the rate of a matrix product.
"""

import argparse
import dataclasses
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

import mafx
from mafx import media
from mafx.benchmarks.measure import (
    CHILD,
    Row,
    measure_function,
    median_seconds,
    rate_columns,
    read_profile,
    rows_table,
    run_apart,
    set_beside,
)
from mafx.commands import Parser, run_command
from mafx.compiling import COMPILED_EVENT, jit, keep_programs
from mafx.data.clips import Clip, PuppetClip
from mafx.data.datasets import find_clips
from mafx.data.examples import ExampleOptions, batches
from mafx.diffusion.samplers import guide
from mafx.flops import count_flops, matmul_rate
from mafx.model import Model, abstract_model, random_model
from mafx.models.animator import SIZES, Animator, parameter_shapes
from mafx.models.unet import Bank, Encoded, Residuals
from mafx.program import plan
from mafx.settings import Settings
from mafx.training.config import STAGES, default_config
from mafx.training.runs import model_sizes
from mafx.training.sharding import distribute_batch, make_mesh, parameter_sharding
from mafx.training.step import state_maker, trace_step
from mafx.training.watch import peak_memory

MODULE = "mafx.benchmarks.speed"
NAME = f"python -m {MODULE}"
PUBLISHED = "mafx.benchmarks.published"

# Names of rows that ours and the reference share.
APPEARANCE, CONTROL, UNET = "appearance encoder", "ControlNet", "UNet, all of it"
STEP, DECODING, PEAK = "a guided step", "decoding one frame", "peak memory, GiB"
PUBLISHED_NAMES = {"appearance": APPEARANCE, "control": CONTROL, "unet": UNET, "decode": DECODING, "step": STEP}

GUIDANCE = 7.5  # the published scale
COPIED_NUMBERS = {"cpu": 2**26}  # of bfloat16, by platform: beyond all caches
COPIED_NUMBERS_ACCELERATOR = 2**30
COMPILED_STEPS = 25  # of the video whose programs are compiled
H200_FLOPS = 989e12  # per second, dense bfloat16, as NVIDIA states it
UTILISATION = 0.5  # of an H200 that one may hope for
DATA_CLIPS = 2
DATA_CLIP_FRAMES = 96
DATA_SIZE = (512, 512)
DATA_SECONDS = 10.0
SHOWN_KERNELS = 25


# -- The machine


def machine(args: argparse.Namespace) -> list[Row]:
    """What the device can do."""
    numbers = jnp.ones(COPIED_NUMBERS.get(jax.default_backend(), COPIED_NUMBERS_ACCELERATOR), jnp.bfloat16)
    copy = jax.jit(lambda x: x + 1)
    seconds = median_seconds(lambda: copy(numbers), 5)
    return [
        {"name": f"matrix product, {args.dtype}", "TFLOP/s": matmul_rate(jnp.dtype(args.dtype)) / 1e12},
        {"name": "copy, GB/s", "GB/s": 2 * numbers.nbytes / seconds / 1e9},  # every number is read and written
    ]


# -- One step


@dataclasses.dataclass(frozen=True)
class StepInputs:
    """What a step of one window sees, see `Animator`; the motion is embedded."""

    noisy: jax.Array
    reference: jax.Array
    text: jax.Array
    t: jax.Array
    motion: jax.Array


def draw_inputs(model: Model, args: argparse.Namespace) -> StepInputs:
    """Random inputs of the right shapes."""
    rng, config = np.random.default_rng(1), model.config

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape, np.float32), model.dtype)

    h, w = (side // config.autoencoder.factor for side in args.size)
    c = config.unet.channels
    return StepInputs(
        noisy=draw(1, args.frames, h, w, c),
        reference=draw(1, h, w, c),
        text=draw(1, config.text.positions, config.unet.text_width),
        t=jnp.array([500]),
        motion=draw(1, args.frames, h, w, config.unet.widths[0]),
    )


def components(args: argparse.Namespace) -> list[Row]:
    """One guided step of one window, part by part and whole, and the decoding of a frame."""
    model = random_model(args.model, dtype=args.dtype)
    x = draw_inputs(model, args)
    still = Animator(model.config.without_temporal_layers())
    everything = (x.noisy, x.reference, x.t, x.text, x.motion)

    def measure(name: str, method: str | Callable, *inputs: object, networks: Animator = model.networks) -> Row:
        return measure_function(name, bind(networks, method), (model.params, *inputs), args.runs)

    return [
        *unet_rows(model, x, measure),
        measure(APPEARANCE, "bank", x.reference, x.t, x.text),
        measure(CONTROL, "residuals_from_embedded", x.noisy, x.t, x.text, x.motion),
        measure(STEP, predict_guided, *everything),
        measure("a guided step without temporal layers", predict_guided, *everything, networks=still),
        measure(DECODING, "decode_latents", x.noisy[:, 0]),
    ]


def unet_rows(model: Model, x: StepInputs, measure: Callable[..., Row]) -> list[Row]:
    """The UNet's share of a step: the down path of both halves together, the rest for each half, and the sum."""

    def compute(method: str | Callable, *inputs: jax.Array):
        return jit(bind(model.networks, method))(model.params, *inputs)

    bank = compute("bank", x.reference, x.t, x.text)
    residuals = compute("residuals_from_embedded", x.noisy, x.t, x.text, x.motion)
    encoded = compute(encode, x.noisy, x.t, x.text)
    rows = [
        measure("UNet: down path, once for both halves", encode, x.noisy, x.t, x.text),
        measure("UNet: middle and up, unconditional", decode, encoded, x.text, {}, residuals),
        measure("UNet: middle and up, with the reference", decode, encoded, x.text, bank, residuals),
    ]
    seconds, teraflop = (sum(row[title] for row in rows) for title in ("seconds", "TFLOP"))
    return [*rows, {"name": UNET, **rate_columns(seconds, teraflop * 1e12)}]


def bind(networks: Animator, method: str | Callable) -> Callable:
    """A function of parameters and inputs that calls a method of the networks, or a function of them."""

    def function(params: dict, *inputs: object):
        return networks.apply({"params": params}, *inputs, method=method)

    return function


def encode(networks: Animator, noisy: jax.Array, t: jax.Array, text: jax.Array) -> Encoded:
    return networks.unet.encode(noisy, t, text, {})


def decode(networks: Animator, encoded: Encoded, text: jax.Array, bank: Bank, residuals: Residuals) -> jax.Array:
    return networks.unet.decode(encoded, text, bank, residuals).output


def predict_guided(
    networks: Animator, noisy: jax.Array, reference: jax.Array, t: jax.Array, text: jax.Array, motion: jax.Array
) -> jax.Array:
    """The networks' part of a guided step."""
    bank, residuals = networks.bank(reference, t, text), networks.residuals_from_embedded(noisy, t, text, motion)
    return guide(*networks.predict_both(noisy, t, text, None, bank, residuals), GUIDANCE)


def reference(args: argparse.Namespace) -> list[Row]:
    """The same step as published, in PyTorch. No rows where it is not installed."""
    if not all(map(importlib.util.find_spec, ("torch", "diffusers"))):
        return []
    command = [sys.executable, "-m", PUBLISHED, "--model", args.model, "--dtype", args.dtype]
    command += ["--size", *map(str, args.size), "--frames", str(args.frames), "--runs", str(args.runs)]
    is_cpu = jax.default_backend() == "cpu"
    command += ["--device", "cpu", "--malloc"] if is_cpu else ["--device", "cuda", "--compile"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures = json.loads(done.stdout)
    seconds = figures["seconds"]
    # The texts, the reference's encoding and the reading of inputs are left out.
    whole_seconds = args.steps * seconds["step"] + args.frames * seconds["decode"]
    peak = figures["peak_rss_gib"] if is_cpu else figures["peak_device_gib"]
    rows = [{"name": PUBLISHED_NAMES[name], "seconds": x} for name, x in seconds.items()]
    return [*rows, {"name": video_name(args), "seconds": whole_seconds}, {"name": PEAK, "GiB": peak}]


# -- Whole videos


def whole(args: argparse.Namespace) -> list[Row]:
    """A video from pictures to frames, as users ask for it: the first time, which compiles, and the second."""
    model = random_model(args.model, dtype=args.dtype)
    clip, rows = PuppetClip(0, 0, tuple(args.size)), []
    (picture,), motion = clip.read(np.array([0]))[0], clip.read(1 + np.arange(args.frames))[1]
    for name in (f"{video_name(args)}, compiling", video_name(args)):
        began = time.perf_counter()
        mafx.animate(model, picture, motion, steps=args.steps, progress=False)
        seconds = time.perf_counter() - began
        rows.append({"name": name, "seconds": seconds, "frames/s": args.frames / seconds})
    return [*rows, {"name": PEAK, "GiB": peak_memory() / 2**30}]


def video_name(args: argparse.Namespace) -> str:
    return f"a video: {args.frames} frames, {args.steps} steps"


def compiling(args: argparse.Namespace) -> list[Row]:
    """The program of an animation in a new process with an empty cache, and in another process after it."""
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        for name in ("first start", "second start"):
            start = run_apart(MODULE, compile_once.__name__, argparse.Namespace(**vars(args), cache=cache))
            rows += [{"name": name, **row} for row in start or ()]
    return rows


def compile_once(args: argparse.Namespace) -> list[Row]:
    """Seconds in XLA, or in reading what it once compiled; and all seconds, tracing included."""
    keep_programs(args.cache)
    spent = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event == COMPILED_EVENT:
            spent.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    model = abstract_model(SIZES[args.model], args.dtype)
    began = time.perf_counter()
    plan(model, Settings(steps=COMPILED_STEPS), tuple(args.size), args.frames).compile()
    return [{"compiling": sum(spent), "with tracing": time.perf_counter() - began}]


def kernels(args: argparse.Namespace) -> list[Row]:
    """The kernels of an animation of one guided step that take longest on the device, from a profile."""
    program = plan(random_model(args.model, dtype=args.dtype), Settings(steps=1), tuple(args.size), args.frames)
    picture, motion = np.zeros((*args.size, 3), np.uint8), np.zeros((args.frames, *args.size, 3), np.uint8)
    program.run(picture, motion, progress=False)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            program.run(picture, motion, progress=False)
        return [kernel._asdict() for kernel in read_profile(Path(folder))[:SHOWN_KERNELS]]


# -- Training


def training(args: argparse.Namespace) -> list[Row]:
    """A step of each stage with the default recipe, and how many examples a second an H200 could do at half its peak.

    TFLOP are those of all devices, TFLOP/s those of each.
    """
    rows = []
    for stage in STAGES:
        config = default_config(stage)
        config.model = args.model
        config.dtype = args.dtype
        config.data.size = tuple(args.size)
        mesh = make_mesh(config.mesh)
        traced = trace_step(config, model_sizes(config), mesh, args.batch)
        flops, batch = count_flops(traced.jaxpr.jaxpr), args.batch * mesh.size
        row = {"name": f"{stage} stage, batch {batch}", "TFLOP": flops / 1e12}
        row["examples/s of an H200"] = batch * UTILISATION * H200_FLOPS / flops
        if args.train:
            seconds = step_seconds(config, traced.lower().compile(), mesh, batch, args.runs)
            row |= {"seconds": seconds, "TFLOP/s": flops / mesh.size / seconds / 1e12}
        rows.append(row)
    return [*rows, {"name": PEAK, "GiB": peak_memory() / 2**30}]


def step_seconds(
    config: ml_collections.ConfigDict, step: jax.stages.Compiled, mesh: Mesh, batch: int, runs: int
) -> float:
    """Median seconds of a training step, the distribution of its batch included, after one that is not counted."""
    make, sizes = state_maker(config), model_sizes(config)
    sharding = parameter_sharding(mesh, jax.eval_shape(make, parameter_shapes(sizes)))
    state = jax.jit(make, out_shardings=sharding)(random_model(sizes).params)
    H, W = config.data.size
    video = (batch, config.data.frames, H, W, 3)
    shapes = {"video": video, "motion": video, "reference": (batch, H, W, 3)}
    rng = np.random.default_rng(0)
    examples = {name: rng.integers(0, 256, shape, np.uint8) for name, shape in shapes.items()}
    times = []
    for number in range(1, runs + 2):
        began = time.perf_counter()
        state, metrics = step(state, distribute_batch(mesh, examples), np.int32(number), np.uint32(config.seed))
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


# -- Files


def data(args: argparse.Namespace) -> list[Row]:
    """Examples per second of one core, from a prepared record to a batch."""
    with tempfile.TemporaryDirectory() as folder:
        clips = prepare_puppets(Path(folder))
        return [
            {"name": f"{frames} frames and the reference", "examples/s of a core": read_rate(clips, frames)}
            for frames in (1, 16)
        ]


def prepare_puppets(folder: Path) -> list[Clip]:
    """Draw puppets, and prepare them as clips of one's own are prepared."""
    from mafx.data.builders import prepare  # noqa: PLC0415 (imports tensorflow-datasets, which is slow)

    raw, prepared = folder / "raw", folder / "prepared"
    raw.mkdir()
    for i in range(DATA_CLIPS):
        video, motion = PuppetClip(i, i, DATA_SIZE).read(np.arange(DATA_CLIP_FRAMES))
        media.write_video(raw / f"{i}.mp4", video, Fraction(25))
        media.write_video(raw / f"{i}_densepose.mp4", motion, Fraction(25))
    prepare("clips", raw, prepared)
    config = default_config("temporal").data
    config.update({"name": "clips", "path": str(prepared)})
    return find_clips(config, "train")


def read_rate(clips: list[Clip], frames: int) -> float:
    """Examples of some frames per second of processor time."""
    iterator = batches(clips, ExampleOptions(frames=frames, stride=4), 1, 0)
    next(iterator)
    began, processor_began, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - began < DATA_SECONDS:
        next(iterator)
        count += 1
    return count / (time.process_time() - processor_began)


def loading(args: argparse.Namespace) -> list[Row]:
    """Weights in the published layout, in float32, which are written here first."""
    with tempfile.TemporaryDirectory() as folder:
        mafx.save_pretrained(random_model(args.model), folder)
        began = time.perf_counter()
        params = jax.block_until_ready(mafx.load_pretrained(folder, args.dtype).params)
        seconds = time.perf_counter() - began
    count = sum(x.size for x in jax.tree.leaves(params))
    name = f"{count / 1e6:.0f} million parameters from float32 files"
    return [{"name": name, "seconds": seconds, "GB/s": 4 * count / seconds / 1e9}]


# -- The command


PARTS = {
    part.__name__: part for part in (machine, reference, components, whole, compiling, training, data, loading, kernels)
}
OWN_PROCESS_PARTS = {**PARTS, compile_once.__name__: compile_once}
Measured = tuple[str, str, list[Row] | None]  # model, part, its rows; None where it failed


def with_defaults(args: argparse.Namespace) -> argparse.Namespace:
    """The flags with the defaults that suit this machine."""
    is_cpu = jax.default_backend() == "cpu"
    defaults = {
        "size": (256, 256) if is_cpu else (512, 512),
        "dtype": "float32" if is_cpu else "bfloat16",
        "steps": 1 if is_cpu else 25,
        "runs": 1 if is_cpu else 5,
        "train": not is_cpu or args.model == "tiny",
    }
    given = {name: x for name, x in vars(args).items() if x is not None}
    return argparse.Namespace(**defaults | given)


def measure_parts(args: argparse.Namespace) -> Iterator[Measured]:
    """Measure all parts of all models, and set their rows beside those of earlier parts."""
    for model in args.model:
        measured: dict[str, list[Row] | None] = {}
        for part in args.parts:
            rows = run_apart(MODULE, part, argparse.Namespace(**vars(args) | {"model": model, "json": None}))
            measured[part] = set_beside(rows, measured) if rows else rows
            yield model, part, measured[part]


def report(parts: Iterable[Measured], path: Path | None) -> None:
    """Print the tables of parts as they are measured, and write all figures to a JSON file."""
    figures: dict[str, dict[str, list[Row] | None]] = {}
    for model, part, rows in parts:
        figures.setdefault(model, {})[part] = rows
        if rows:
            print(rows_table(rows, f"{model}, {part}"), flush=True)
        if path:
            path.write_text(json.dumps(figures, indent=1) + "\n")


def make_parser() -> Parser:
    parser = Parser(NAME, __doc__)
    add = parser.add_argument
    add("--model", nargs="+", default=["sd15"], choices=SIZES, help="Sizes of the networks (default sd15).")
    add("--size", nargs=2, type=int, metavar=("H", "W"), help="In pixels (default 512 512; 256 256 on a CPU).")
    add("--dtype", choices=("float32", "bfloat16"), help="Of the networks (default bfloat16; float32 on a CPU).")
    add("--frames", type=int, default=16, help="Length of a video (default 16).")
    add("--steps", type=int, help="Steps of a whole video (default 25; 1 on a CPU).")
    add("--runs", type=int, help="Number of runs, of which the median is taken (default 5; 1 on a CPU).")
    add("--batch", type=int, default=1, help="Examples per device in training (default 1).")
    add(
        "--train",
        action=argparse.BooleanOptionalAction,
        help="Run training steps instead of only counting their arithmetic (default: not at full size on a CPU).",
    )
    add("--parts", nargs="+", default=list(PARTS), choices=list(PARTS), help="What is measured (default: everything).")
    add("--json", type=Path, help="File for the figures.")
    return parser


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == [CHILD]:
        _, part, flags = arguments
        args = with_defaults(argparse.Namespace(**json.loads(flags)))
        print(json.dumps(OWN_PROCESS_PARTS[part](args)))
    else:
        args = make_parser().parse_args(arguments)
        report(measure_parts(args), args.json)


if __name__ == "__main__":
    sys.exit(run_command(NAME, main))
