"""The training loop, to be read from top to bottom: data, model, state, steps."""

import dataclasses
import json
import logging
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from tqdm.auto import tqdm

from mafx.data.datasets import find_clips
from mafx.data.examples import ExampleOptions, Joint, batches
from mafx.data.latents import cache_latents
from mafx.diffusion.schedule import Schedule
from mafx.errors import InputError
from mafx.model import Model
from mafx.models.animator import SIZES, Animator, AnimatorConfig
from mafx.training.checkpoints import Checkpoints, read_parameters
from mafx.training.config import check_config
from mafx.training.flops import count_flops, matmul_rate
from mafx.training.sharding import distribute_batch, make_mesh, replicated
from mafx.training.start import make_tokenizer, start
from mafx.training.step import Flat, jit_step, make_optimiser, unflatten
from mafx.training.watch import Journal, Meter, show

log = logging.getLogger("mafx")


def train(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Train one stage, from the newest checkpoint of `workdir` if there is one.

    Raises: InputError where the config or what it names cannot be used, before anything is compiled; FloatingPointError at a loss that is not
    finite, after keeping the state and the batch that led to it.
    """
    check_config(config)
    sizes, first_process = model_sizes(config), jax.process_index() == 0
    clips, held_out = find_clips(config.data, "train"), find_clips(config.data, "test")
    images = find_clips(config.images, "train") if config.joint.images else []
    workdir.mkdir(parents=True, exist_ok=True)
    if first_process:
        (workdir / "config.json").write_text(config.to_json_best_effort(indent=2))

    # -- Model and state
    mesh, networks, schedule = make_mesh(config.mesh), Animator(sizes), Schedule(**config.schedule)
    if config.batch % mesh.size:
        raise InputError(f"config.batch: expected a multiple of the {mesh.size} devices, found {config.batch}")
    checkpoints, journal = Checkpoints(workdir, config.keep, config.keep_best), Journal(workdir)
    state, examples = start(config, sizes, mesh, make_optimiser(config)[0], workdir, checkpoints)
    tokenizer = make_tokenizer(sizes, workdir)

    # -- Data, from where it was left
    settings = {name: config.data[name] for name in ("frames", "stride", "reference", "distance", "flip", "crop")}
    options = ExampleOptions(size=tuple(config.data.size), **settings)
    if config.data.latent_cache:
        encode = jax.jit(
            lambda flat, frames: networks.apply({"params": unflatten(flat)}, frames, method="encode_image")
        )
        frozen = gather({name: x for name, x in state.frozen.items() if name.startswith("autoencoder/")}, mesh)
        clips, images = (
            cache_latents(x, lambda frames: encode(frozen, frames), options, Path(config.data.latent_cache))
            for x in (clips, images)
        )
    share = {"process": jax.process_index(), "processes": jax.process_count(), "workers": config.data.workers}
    iterator = batches(
        clips, options, config.batch, config.seed, images=images, joint=Joint(**config.joint), start=examples, **share
    )

    # -- The step, compiled for every kind of batch that comes
    step, compiled = jit_step(config, sizes, tokenizer(""), mesh, state), {}

    count = sum(x.size for x in state.trainable.values()), sum(x.size for x in state.frozen.values())
    log.info(
        "%s: %s parameters are trained, %s frozen; %d clips, %d held out.",
        config.stage,
        *map("{:,}".format, count),
        len(clips),
        len(held_out),
    )
    done, unread = int(state.step), []
    bar = tqdm(initial=done, total=config.steps, desc=config.stage, unit="step", disable=not first_process)
    meter, stop = Meter(matmul_rate(jnp.dtype(config.dtype))), StopSignal()
    while done < config.steps:
        batch = next(iterator)
        done, examples = done + 1, examples + config.batch
        arguments = state, distribute_batch(mesh, batch), np.asarray(done, np.int32)
        frames = batch["video"].shape[1]
        if frames not in compiled:
            traced = step.trace(*arguments)
            compiled[frames] = traced.lower().compile(), count_flops(traced.jaxpr)
        run, flops = compiled[frames]
        state, metrics = run(*arguments)
        unread.append((done, batch, flops, metrics))
        bar.update()

        stopping, last, scores = stop(done), done == config.steps, None
        due = {what: last or done % config[f"{what}_every"] == 0 for what in ("log", "show", "save")}
        while len(unread) > (
            0 if stopping or any(due.values()) else 1
        ):  # a step is looked at while the next one runs: devices do not wait
            number, its_batch, its_flops, metrics = unread.pop(0)
            values = {name: x.item() for name, x in jax.device_get(metrics).items()}
            if not values.pop("finite"):
                keep_evidence(
                    workdir,
                    number,
                    its_batch,
                    state,
                    checkpoints,
                    config,
                    examples - (done - number + 1) * config.batch,
                )
            meter.add(config.batch, its_flops, values)
        if due["log"]:
            values = meter.read()
            journal.write(done, values)
            bar.set_postfix(loss=f"{values['loss']:.4f}")
        if config.show_clips and due["show"]:
            model = Model(sizes, unflatten(gather(state.frozen | state.ema, mesh)), tokenizer, schedule)
            scores, video = show(
                model, held_out[: config.show_clips], options, config.show_frames, config.show_guidance
            )
            journal.write(done, scores)
            journal.show(done, video)
        if stopping or due["save"]:
            checkpoints.save(state, {"examples": examples}, config, scores)
        if stopping:
            log.info("Stopped by a signal at step %d; the same command goes on from there.", done)
            break
    checkpoints.close()
    journal.close()
    stop.close()


def keep_evidence(
    workdir: Path,
    step: int,
    batch: dict,
    state,
    checkpoints: Checkpoints,
    config: ml_collections.ConfigDict,
    examples: int,
) -> None:
    """The state before the step, which had seen so many examples, and its batch; then FloatingPointError."""
    path = workdir / f"non_finite_{step}_{jax.process_index()}.npz"
    np.savez(path, **batch)
    if checkpoints.latest != step - 1:
        checkpoints.save(state, {"examples": examples}, config)
    checkpoints.close()
    seen = "\n  ".join(batch["key"])
    raise FloatingPointError(
        f"the loss or gradient of step {step} is not finite. The state before it is saved, its batch is in {path}:\n  {seen}"
    )


def model_sizes(config: ml_collections.ConfigDict) -> AnimatorConfig:
    """The networks' sizes, with what the config changes about them and says about how they are computed."""
    sizes = SIZES[config.model]
    remat = {True: "blocks", False: "none"}.get(config.remat, config.remat)  # old runs have a bool, and no networks
    return dataclasses.replace(sizes, unet=dataclasses.replace(sizes.unet, remat=remat), **config.get("networks", {}))


def gather(params: Flat, mesh: Mesh) -> Flat:
    """Parameters whole on this process' first device."""
    whole = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(params)
    return {name: x.addressable_data(0) for name, x in whole.items()}


def read_config(workdir: Path) -> ml_collections.ConfigDict:
    """The config that a work folder was last trained with. Raises InputError where there is none."""
    try:
        return ml_collections.ConfigDict(json.loads((workdir / "config.json").read_text()))
    except OSError as error:
        raise InputError(f"expected a work folder of train.py, found no config.json in {workdir}") from error


def load_workdir(workdir: Path, dtype: jnp.dtype | str = jnp.float32, step: int | str = "latest") -> Model:
    """The model of a checkpoint of a work folder (a step, "latest" or "best"), ready to animate or for `mafx.save_pretrained`."""
    flat, config = read_parameters(workdir, step)
    params = {name: jnp.asarray(x, dtype) for name, x in flat.items()}
    sizes = model_sizes(config)
    return Model(sizes, unflatten(params), make_tokenizer(sizes, workdir), Schedule(**config.schedule))


class StopSignal:
    """Becomes true after SIGTERM, preemption or a polite kill, on all processes at the same step. The step under way is finished and saved."""

    def __init__(self):
        self._set = False
        self._alone = jax.process_count() == 1
        if self._alone:  # else JAX has its own handler, which agrees with the other processes
            self._before = signal.signal(signal.SIGTERM, self._handle)

    def __call__(self, step: int) -> bool:
        return self._set if self._alone else multihost_utils.reached_preemption_sync_point(step)

    def close(self) -> None:
        """Leave signals as they were."""
        if self._alone:
            signal.signal(signal.SIGTERM, self._before)

    def _handle(self, *_) -> None:
        self._set = True
