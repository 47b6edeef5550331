"""How fast everything is on the device that is here: a table, and the same figures as JSON.

    pip install torch diffusers     # for the reference beside ours; without them its columns stay empty
    python benchmarks/speed.py --json speed.json

By default Stable Diffusion 1.5's size: on a CPU 256x256 in float32, on an accelerator 512x512 in bfloat16. Every part runs in a process of its own,
with memory and compilation of its own. The first two say what the device and what the reference can do; where both were asked for, later rows are
set beside them. TFLOP are those of the networks as they are defined, with every exact saving: a convolution that gets by with fewer multiplications
can exceed the rate of a matrix product.
"""

import argparse
import collections
import dataclasses
import functools
import importlib.util
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import flax
import jax
import jax.numpy as jnp
import numpy as np

import mafx
from mafx import media
from mafx.compiling import jit, keep_programs
from mafx.data.clips import PuppetClip
from mafx.data.datasets import find_clips
from mafx.data.examples import ExampleOptions, batches
from mafx.diffusion.samplers import guide
from mafx.model import Model, abstract_model
from mafx.models.animator import SIZES, Animator, AnimatorConfig, parameter_shapes
from mafx.models.text import Tokenizer
from mafx.training.config import STAGES, default_config
from mafx.training.fit import trace_step
from mafx.training.flops import count_flops, matmul_rate
from mafx.training.loop import model_sizes
from mafx.training.sharding import distribute_batch, make_mesh
from mafx.training.step import init_state, make_optimiser
from mafx.training.watch import peak_memory

REFERENCE = Path(__file__).with_name("reference.py")
CHILD = "--child"  # PART FLAGS: this process is for one part
H200 = 989e12  # FLOP per second, dense bfloat16, as NVIDIA states it


def seconds(call: Callable[[], object], runs: int) -> float:
    """Median, after one run that is not counted."""
    times = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def cheap_params(config: AnimatorConfig, dtype: str) -> dict:
    """Random parameters that keep activations in range, from one block of numbers: drawing billions would take longer than the measurement."""
    block = np.random.default_rng(0).standard_normal(1 << 22, np.float32)

    def draw(path: tuple[str, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        scale = np.prod(leaf.shape[:-1]) ** -0.5 if path[-1] == "kernel" else 0.1
        return jnp.asarray(np.resize(block, leaf.shape) * np.float32(scale) + np.float32(path[-1] == "scale"), dtype)

    flat = flax.traverse_util.flatten_dict(parameter_shapes(config))
    return flax.traverse_util.unflatten_dict({path: draw(path, leaf) for path, leaf in flat.items()})


def shapes_of(tree, dtype=None):
    """The same arrays without their values, in another floating dtype if one is given."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, dtype if dtype and jnp.issubdtype(x.dtype, jnp.floating) else x.dtype),
        tree,
    )


# -- Parts, each a function of the flags that returns rows: {"what": ..., figure: number, ...}


def machine(args: argparse.Namespace) -> list[dict]:
    """What the device can do."""
    x = jnp.ones(2**26 if jax.default_backend() == "cpu" else 2**30, jnp.bfloat16)
    copy = jax.jit(lambda x: x + 1)
    return [
        {"what": f"matrix product, {args.dtype}", "TFLOP/s": matmul_rate(jnp.dtype(args.dtype)) / 1e12},
        {"what": "copy, GB/s", "GB/s": 2 * x.nbytes / seconds(lambda: copy(x), 5) / 1e9},
    ]


def components(args: argparse.Namespace) -> list[dict]:
    """One guided step of one window, part by part and whole, and a frame's way back to pixels."""
    config, dtype, f, (H, W) = SIZES[args.model], jnp.dtype(args.dtype), args.frames, args.size
    params, rng = cheap_params(config, args.dtype), np.random.default_rng(1)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape, np.float32), dtype)  # noqa: E731
    h, w, c = H // config.autoencoder.factor, W // config.autoencoder.factor, config.unet.channels
    noisy, reference, text, t = (
        draw(1, f, h, w, c),
        draw(1, h, w, c),
        draw(1, 77, config.unet.text_width),
        jnp.array([500]),
    )
    motion = draw(1, f, H, W, 3)

    def runner(networks: Animator):
        return lambda method, *inputs: (
            lambda p, *inputs: networks.apply({"params": p}, *inputs, method=method),
            inputs,
        )

    run = runner(Animator(config))
    still = runner(Animator(dataclasses.replace(config, unet=dataclasses.replace(config.unet, temporal=None))))
    bank = jit(run("bank")[0])(params, reference, t, text)
    residuals = jit(run("residuals")[0])(params, noisy, t, text, motion)
    encode = lambda m, noisy, t, text: m.unet.encode(noisy, t, text, {})  # noqa: E731
    decode = lambda m, encoded, text, bank, residuals: m.unet.decode(encoded, text, bank, residuals).output  # noqa: E731
    encoded = jit(run(encode)[0])(params, noisy, t, text)

    def step(m: Animator, noisy, reference, t, text, motion):
        bank, residuals = m.bank(reference, t, text), m.residuals(noisy, t, text, motion)
        return guide(*m.predict_both(noisy, t, text, None, bank, residuals), 7.5)

    unet = {
        "UNet: down path, once for both halves": run(encode, noisy, t, text),
        "UNet: middle and up, unconditional": run(decode, encoded, text, {}, residuals),
        "UNet: middle and up, with the reference": run(decode, encoded, text, bank, residuals),
    }
    others = {
        "appearance encoder": run("bank", reference, t, text),
        "ControlNet": run("residuals", noisy, t, text, motion),
        "a guided step": run(step, noisy, reference, t, text, motion),
        "a guided step without temporal layers": still(step, noisy, reference, t, text, motion),
        "decoding one frame": run("decode_latents", noisy[:, 0]),
    }
    of_unet, of_others = (
        [row(what, function, (params, *inputs), args) for what, (function, inputs) in parts.items()]
        for parts in (unet, others)
    )
    took, tera = (sum(row[figure] for row in of_unet) for figure in ("seconds", "TFLOP"))
    return [*of_unet, {"what": "UNet, all of it", "seconds": took, "TFLOP": tera, "TFLOP/s": tera / took}, *of_others]


def row(what: str, function: Callable, inputs: tuple, args: argparse.Namespace) -> dict:
    """Compiled and run: seconds, arithmetic, memory."""
    program = jit(function)
    began = time.perf_counter()
    compiled = program.lower(*inputs).compile()
    compiling, flops = time.perf_counter() - began, definition_flops(function, inputs)
    took, memory = seconds(lambda: compiled(*inputs), args.runs), compiled.memory_analysis()
    found = {"seconds": took, "TFLOP": flops / 1e12, "TFLOP/s": flops / took / 1e12, "compiling": compiling}
    return {"what": what} | found | {"temporaries GiB": memory.temp_size_in_bytes / 2**30 if memory else math.nan}


def definition_flops(function: Callable, inputs: tuple) -> int:
    """Counted in 16 bits, for which every convolution is computed by its definition."""
    return count_flops(jax.make_jaxpr(function)(*shapes_of(inputs, jnp.bfloat16)).jaxpr)


def reference(args: argparse.Namespace) -> list[dict]:
    """The same step as published, in PyTorch."""
    if not all(map(importlib.util.find_spec, ("torch", "diffusers"))):
        return []
    device = "cpu" if jax.default_backend() == "cpu" else "cuda"
    command = [
        sys.executable,
        REFERENCE,
        "--model",
        args.model,
        "--size",
        *args.size,
        "--frames",
        args.frames,
        "--runs",
        args.runs,
        "--dtype",
        args.dtype,
    ]
    command += ["--device", device, *(["--malloc"] if device == "cpu" else ["--compile"])]
    done = subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    names = {
        "appearance": "appearance encoder",
        "control": "ControlNet",
        "unet": "UNet, all of it",
        "decode": "decoding one frame",
        "step": "a guided step",
    }
    took = found["seconds"]
    rows = [{"what": names[name], "seconds": x} for name, x in took.items()]
    rows.append(
        {"what": video(args), "seconds": args.steps * took["step"] + args.frames * took["decode"]}
    )  # and no text, encoding or input
    return [*rows, {"what": "peak memory, GiB", "GiB": found.get("peak_device_gib", found["peak_rss_gib"])}]


def whole(args: argparse.Namespace) -> list[dict]:
    """A video from pictures to frames, as a user asks for it: the first time, compiling, and the second."""
    model = Model(SIZES[args.model], cheap_params(SIZES[args.model], args.dtype), tokenizer(args))
    clip, rows = PuppetClip(0, 0, tuple(args.size)), []
    (picture,), motion = clip.read(np.array([0]))[0], clip.read(1 + np.arange(args.frames))[1]
    for what in (f"{video(args)}, compiling", video(args)):
        began = time.perf_counter()
        mafx.animate(model, picture, motion, steps=args.steps, progress=False)
        took = time.perf_counter() - began
        rows.append({"what": what, "seconds": took, "frames/s": args.frames / took})
    return [*rows, {"what": "peak memory, GiB", "GiB": peak_memory() / 2**30}]


def video(args: argparse.Namespace) -> str:
    return f"a video: {args.frames} frames, {args.steps} steps"


def tokenizer(args: argparse.Namespace) -> Tokenizer:
    text = SIZES[args.model].text
    return Tokenizer.without_vocabulary(text.vocabulary, text.positions)


def compiling(args: argparse.Namespace) -> list[dict]:
    """All programs of sampling, in a new process with an empty cache, and in another one after it."""
    with tempfile.TemporaryDirectory() as cache:
        starts = {
            start: in_own_process("compile_once", argparse.Namespace(**vars(args) | {"cache": cache}))
            for start in ("first", "second")
        }
    return [{"what": f"{start} start", **found[0]} for start, found in starts.items()]


def compile_once(args: argparse.Namespace) -> list[dict]:
    """Seconds in XLA, or in reading what it once compiled, and with tracing, which is waited for as well."""
    keep_programs(Path(args.cache))
    spent = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, took, **_: spent.append(took) if "backend_compile" in event else None
    )
    model, began = abstract_model(SIZES[args.model], args.dtype), time.perf_counter()
    mafx.compile_ahead(model, tuple(args.size), args.frames, steps=25)
    return [{"compiling": sum(spent), "with tracing": time.perf_counter() - began}]


def training(args: argparse.Namespace) -> list[dict]:
    """A step of each stage, with the default recipe, and how many examples a second its arithmetic would allow an H200 at half of its peak.

    TFLOP are those of all devices, TFLOP/s those of each.
    """
    rows = []
    for stage in STAGES:
        config = default_config(stage)
        config.model, config.dtype, config.data.size = args.model, args.dtype, tuple(args.size)
        size, mesh = model_sizes(config), make_mesh(config.mesh)
        b, traced = args.batch * mesh.size, trace_step(config, size, mesh, args.batch)
        flops = count_flops(traced.jaxpr)
        row = {
            "what": f"{stage} stage, batch {b}",
            "TFLOP": flops / 1e12,
            "examples/s of an H200": b * H200 / 2 / flops,
        }
        if args.train:
            compiled, took = traced.lower().compile(), []
            begin = functools.partial(
                init_state, rules=config.train_only, optimiser=make_optimiser(config)[0], dtype=jnp.dtype(config.dtype)
            )
            state, f, (H, W) = jax.jit(begin)(cheap_params(size, "float32")), config.data.frames, args.size
            shapes = {"video": (b, f, H, W, 3), "motion": (b, f, H, W, 3), "reference": (b, H, W, 3)}
            batch = {name: np.random.default_rng(0).integers(0, 256, shape, np.uint8) for name, shape in shapes.items()}
            for number in range(1, args.runs + 2):
                began = time.perf_counter()
                state, metrics = compiled(state, distribute_batch(mesh, batch), np.int32(number))
                jax.block_until_ready(metrics)
                took.append(time.perf_counter() - began)
            row |= {
                "seconds": statistics.median(took[1:]),
                "TFLOP/s": flops / mesh.size / statistics.median(took[1:]) / 1e12,
            }
        rows.append(row)
    return [*rows, {"what": "peak memory, GiB", "GiB": peak_memory() / 2**30}]


def data(args: argparse.Namespace) -> list[dict]:
    """Examples a second of one core, from a prepared record to a batch: clips of 96 frames of 512x512, drawn here."""
    rows, config = [], default_config("temporal").data
    with tempfile.TemporaryDirectory() as folder:
        raw, prepared = Path(folder, "raw"), Path(folder, "prepared")
        raw.mkdir()
        for i in range(2):
            for kind, frames in zip(("", "_densepose"), PuppetClip(i, i, (512, 512)).read(np.arange(96)), strict=True):
                media.write_video(raw / f"{i}{kind}.mp4", frames, Fraction(25))
        command = [
            sys.executable,
            "-m",
            "mafx.data.builders",
            "clips",
            "--manual_dir",
            str(raw),
            "--data_dir",
            str(prepared),
        ]
        subprocess.run(command, check=True, capture_output=True, cwd=REFERENCE.parents[1])
        config.update({"name": "clips", "path": str(prepared), "test_clips": 0})
        clips = find_clips(config, "train")
        for frames in (1, 16):
            iterator = batches(clips, ExampleOptions(frames=frames, stride=4), 1, 0)
            next(iterator)
            began, spent, count = time.perf_counter(), time.process_time(), 0
            while time.perf_counter() - began < 10:
                next(iterator)
                count += 1
            rows.append(
                {
                    "what": f"{frames} frames and the reference",
                    "examples/s of a core": count / (time.process_time() - spent),
                }
            )
    return rows


def loading(args: argparse.Namespace) -> list[dict]:
    """The published layout in float32, written here first."""
    config = SIZES[args.model]
    with tempfile.TemporaryDirectory() as folder:
        mafx.save_pretrained(Model(config, cheap_params(config, "float32"), tokenizer(args)), folder)
        began = time.perf_counter()
        params = mafx.load_pretrained(folder, args.dtype).params
        jax.block_until_ready(params)
        took = time.perf_counter() - began
    count = sum(x.size for x in jax.tree.leaves(params))
    return [
        {
            "what": f"{count / 1e6:.0f} million parameters from float32 files",
            "seconds": took,
            "GB/s": 4 * count / took / 1e9,
        }
    ]


def kernels(args: argparse.Namespace) -> list[dict]:
    """The programs of one guided step that take longest on the device, from a profile."""
    config = SIZES[args.model]
    model, (H, W) = Model(config, cheap_params(config, args.dtype), tokenizer(args)), args.size
    picture, motion = np.zeros((H, W, 3), np.uint8), np.zeros((args.frames, H, W, 3), np.uint8)
    mafx.animate(model, picture, motion, steps=1, progress=False)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            mafx.animate(model, picture, motion, steps=1, progress=False)
        (path,) = Path(folder).glob("**/*.xplane.pb")
        planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
    spent, count = collections.Counter(), collections.Counter()
    wanted = [plane for plane in planes if "/device:" in plane.name] or planes  # an accelerator's own, else the host's
    for plane in wanted:
        for line in plane.lines:
            if "/device:" in plane.name and line.name in (
                "XLA Modules",
                "Steps",
                "Framework Ops",
                "Framework Name Scope",
                "Source code",
            ):
                continue  # sums of what the others have
            for event in line.events:
                if event.name.startswith("$"):  # lines of Python
                    continue
                name = re.sub(r"[.\d]+$", "", event.name)
                spent[name] += event.duration_ns / 1e9
                count[name] += 1
    return [{"what": name, "seconds": took, "count": count[name]} for name, took in spent.most_common(25)]


PARTS = (machine, reference, components, whole, compiling, training, data, loading, kernels)


def set_beside(rows: list[dict], figures: dict[str, list[dict]]) -> list[dict]:
    """The rows with what they are to the matrix product and to the reference, where these were measured."""
    rate = next((row["TFLOP/s"] for row in figures.get("machine") or () if "TFLOP/s" in row), None)
    references = {row["what"]: row["seconds"] for row in figures.get("reference") or () if "seconds" in row}

    def ratios(row: dict) -> dict[str, float]:
        found = {"of the matrix product": row["TFLOP/s"] / rate} if rate and "TFLOP/s" in row else {}
        if row["what"] in references:
            found |= {"reference": references[row["what"]], "times faster": references[row["what"]] / row["seconds"]}
        return found

    return [row | ratios(row) for row in rows]


def table(rows: list[dict], title: str) -> str:
    """Markdown."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [f"| {title} | {' | '.join(columns[1:])} |", f"|---|{'--:|' * (len(columns) - 1)}"]
    return (
        "\n".join([*lines, *("| " + " | ".join(_cell(row.get(name)) for name in columns) + " |" for row in rows)])
        + "\n"
    )


def _cell(x) -> str:
    return "" if x is None else f"{x:.4g}" if isinstance(x, float) else str(x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["sd15"], choices=SIZES)
    parser.add_argument("--size", nargs=2, type=int, metavar=("H", "W"))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--steps", type=int, help="of a whole video; 25, or 1 on a CPU")
    parser.add_argument("--runs", type=int, help="counted ones; 5, or 1 on a CPU")
    parser.add_argument("--batch", type=int, default=1, help="examples per device in training")
    parser.add_argument(
        "--train",
        action=argparse.BooleanOptionalAction,
        help="run training steps, not only count them; by default not at full size on a CPU",
    )
    parser.add_argument(
        "--parts", nargs="+", default=[part.__name__ for part in PARTS], choices=[part.__name__ for part in PARTS]
    )
    parser.add_argument("--json", type=Path, help="where the figures go")
    args = parser.parse_args()
    figures = {}
    for model in args.model:
        for part in args.parts:
            rows = in_own_process(part, argparse.Namespace(**vars(args) | {"model": model, "json": None}))
            if rows:
                rows = set_beside(rows, figures.get(model, {}))
            figures.setdefault(model, {})[part] = rows
            if rows:
                print(table(rows, f"{model}, {part}"), flush=True)
            if args.json:
                args.json.write_text(json.dumps(figures, indent=1) + "\n")


def in_own_process(part: str, args: argparse.Namespace) -> list[dict] | None:
    """Rows, or None where it failed; why stands above then."""
    command = [sys.executable, __file__, CHILD, part, json.dumps(vars(args))]
    environment = os.environ | {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false"
    }  # a part may start others that use the same device
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    if done.returncode:
        print(f"{args.model}, {part}: exit code {done.returncode}", file=sys.stderr, flush=True)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def child(part: str, args: argparse.Namespace) -> None:
    cpu = jax.default_backend() == "cpu"
    defaults = {
        "size": (256, 256) if cpu else (512, 512),
        "dtype": "float32" if cpu else "bfloat16",
        "steps": 1 if cpu else 25,
    }
    defaults |= {"runs": 1 if cpu else 5, "train": not cpu or args.model == "tiny"}
    for name, value in defaults.items():
        setattr(args, name, value if getattr(args, name) is None else getattr(args, name))
    print(json.dumps(globals()[part](args)))


if __name__ == "__main__":
    if sys.argv[1:2] == [CHILD]:
        child(sys.argv[2], argparse.Namespace(**json.loads(sys.argv[3])))
    else:
        main()
