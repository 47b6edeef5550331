"""The training loop, to be read from top to bottom: data, model, state, steps."""

import functools
import json
import logging
import signal
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from tqdm.auto import tqdm

from mafx import media
from mafx.animate import animate
from mafx.data.clips import Clip, FolderClip, puppet_clips
from mafx.data.pipeline import Sampling, batches, read_example
from mafx.diffusion.schedule import Schedule
from mafx.errors import InputError
from mafx.model import Model
from mafx.models.animator import SIZES, Animator, init_parameters, parameter_shapes
from mafx.models.text import Tokenizer
from mafx.training.checkpoints import Checkpoints, read_parameters
from mafx.training.sharding import batch_sharding, distribute_batch, make_mesh, parameter_sharding, replicated
from mafx.training.step import Flat, autoencoder_loss, diffusion_loss, init_state, make_optimiser, make_step, unflatten

log = logging.getLogger("mafx")


def train(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Train one stage, from the newest checkpoint of `workdir` if there is one.

    What a run starts from, in this order: the newest checkpoint of this work folder; the parameters of `config.init_from`, another work folder;
    nothing.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(config.to_json_best_effort(indent=2))

    # -- Data
    size = tuple(config.data.size)
    sampling = Sampling(config.data.frames, config.data.stride, config.data.distance, size, config.data.flip)
    clips, held_out = find_clips(config, "train"), find_clips(config, "test")
    processes = {"process": jax.process_index(), "processes": jax.process_count()}
    iterator = batches(clips, sampling, config.batch, config.seed, workers=config.data.workers, **processes)

    # -- Model and state, created where they will live
    mesh = make_mesh(config.mesh)
    networks, schedule = Animator(SIZES[config.model]), Schedule(**config.schedule)
    tokenizer = make_tokenizer(config)
    optimiser, rate = make_optimiser(config)
    init = functools.partial(init_state, rules=config.train_only, optimiser=optimiser, dtype=jnp.dtype(config.dtype))
    start = starting_parameters(config)
    shapes = jax.eval_shape(init, start or parameter_shapes(SIZES[config.model]))
    sharding = parameter_sharding(mesh, shapes)
    if start:
        state = jax.jit(init, out_shardings=sharding)(start)
    else:
        state = jax.jit(lambda key: init(init_parameters(SIZES[config.model], key)), out_shardings=sharding)(jax.random.key(config.seed))
    del start
    checkpoints = Checkpoints(workdir)
    if checkpoints.latest is not None:
        state, position = checkpoints.restore(state)
        iterator.set_state(position)
        log.info("Going on from step %d of %s.", state.step, workdir)

    # -- Steps
    loss = autoencoder_loss(networks, config.loss) if config.stage == "autoencoder" else None
    loss = loss or diffusion_loss(networks, schedule, tokenizer(""), config.loss)
    shardings = {"in_shardings": (sharding, batch_sharding(mesh)), "out_shardings": (sharding, replicated(mesh))}
    step = jax.jit(make_step(loss, optimiser, rate, config), donate_argnums=0, **shardings)
    stop = StopSignal()
    count = sum(x.size for x in state.trainable.values()), sum(x.size for x in state.frozen.values())
    log.info("%s: %s parameters are trained, %s frozen; %d clips, %d held out.", config.stage, *map("{:,}".format, count), len(clips), len(held_out))
    bar = tqdm(range(int(state.step), config.steps), initial=int(state.step), total=config.steps, desc=config.stage, unit="step")
    began, since = time.perf_counter(), int(state.step)
    for i in bar:
        batch = next(iterator)
        state, metrics = step(state, distribute_batch(mesh, batch))
        done = i + 1
        if done % config.log_every == 0 or done == config.steps:
            values = {name: float(x) for name, x in metrics.items()}
            values["examples_per_second"] = (done - since) * config.batch / (time.perf_counter() - began)
            began, since = time.perf_counter(), done
            write_metrics(workdir, done, values)
            bar.set_postfix(loss=f"{values['loss']:.4f}")
            if not np.isfinite(values["loss"]):
                np.savez(workdir / f"non_finite_{done}.npz", **batch)
                raise FloatingPointError(f"the loss of step {done} is not finite; its batch is kept in {workdir}/non_finite_{done}.npz")
        stopping = stop.is_set  # read once: a signal may come at any moment
        if stopping or done == config.steps or done % config.save_every == 0:
            checkpoints.save(state, iterator.get_state(), config)
        if config.stage != "autoencoder" and (done == config.steps or done % config.show_every == 0):
            model = Model(SIZES[config.model], unflatten(state.frozen | state.ema), tokenizer, schedule)
            write_metrics(workdir, done, show(model, held_out[: config.show_clips], sampling, workdir / f"held_out_{done:06d}.mp4"))
        if stopping:
            log.info("Stopped by a signal at step %d; the same command goes on from there.", done)
            break
    checkpoints.close()
    stop.close()


def find_clips(config: ml_collections.ConfigDict, split: str) -> list[Clip]:
    """The clips of a split: drawn puppets, or one folder of frames whose first part is for training."""
    if config.data.name == "puppets":
        return puppet_clips(split, config.data[f"{split}_clips"], tuple(config.data.size))
    if config.data.name == "folder":
        first, last = {"train": (0, config.data.train_frames), "test": (config.data.train_frames, None)}[split]
        return [FolderClip(Path(config.data.path), first, last)]
    raise InputError(f"data set {config.data.name!r} is unknown, expected puppets or folder")


def make_tokenizer(config: ml_collections.ConfigDict) -> Tokenizer:
    text = SIZES[config.model].text
    return Tokenizer.without_vocabulary(text.vocabulary, text.positions)


def starting_parameters(config: ml_collections.ConfigDict) -> dict | None:
    if not config.init_from:
        return None
    flat, _ = read_parameters(Path(config.init_from))
    return unflatten(flat)


def trained_size(workdir: Path) -> media.Size:
    """Rows and columns of the videos a work folder is trained on."""
    try:
        return tuple(json.loads((workdir / "config.json").read_text())["data"]["size"])
    except OSError as error:
        raise InputError(f"expected a work folder of train.py, found no config.json in {workdir}") from error


def load_workdir(workdir: Path, dtype: jnp.dtype | str = jnp.float32) -> Model:
    """The model of a work folder's newest checkpoint, ready to animate or to be saved in the published layout."""
    flat, config = read_parameters(workdir)
    params: Flat = {name: jnp.asarray(x, dtype) for name, x in flat.items()}
    return Model(SIZES[config.model], unflatten(params), make_tokenizer(config), Schedule(**config.schedule))


def write_metrics(workdir: Path, step: int, values: dict[str, float]) -> None:
    """One JSON line."""
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step} | values) + "\n")


def show(model: Model, clips: list[Clip], sampling: Sampling, path: Path) -> dict[str, float]:
    """Animate the beginning of held-out clips from their first frame: a video reference | motion | result | truth, and its scores."""
    rows, scores = [], []
    for clip in clips:
        frames = min(16, clip.frames - 1)
        example = read_example(clip, 0, 1 + np.arange(frames), sampling)
        result = animate(model, example["reference"], example["motion"], guidance_scale=2.0, steps=20, sampler="dpmpp_2m", progress=False)
        rows.append(media.side_by_side(example["reference"], example["motion"], media.to_uint8(result.video), example["video"]))
        truth = example["video"] / 255
        copied = np.broadcast_to(example["reference"] / 255, truth.shape)
        scores.append([psnr(result.video, truth), psnr(copied, truth)])
    media.write_video(path, np.concatenate(rows, axis=1), 12)
    ours, copy = np.mean(scores, axis=0)
    return {"held_out_psnr": float(ours), "held_out_psnr_of_copying": float(copy)}


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of pictures in [0, 1], in dB."""
    return float(-10 * np.log10(np.square(a - b).mean()))


class StopSignal:
    """`is_set` becomes true at SIGTERM: preemption, or a polite kill. The step under way is finished and saved."""

    def __init__(self):
        self.is_set = False
        self._before = signal.signal(signal.SIGTERM, self._set)

    def close(self) -> None:
        """Leave signals as they were."""
        signal.signal(signal.SIGTERM, self._before)

    def _set(self, *_) -> None:
        self.is_set = True
