"""The training loop, to be read from top to bottom: what a run needs, its steps, what it reports and keeps."""

import contextlib
import functools
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from mafx.commands import expand_home
from mafx.compiling import announce_compilation
from mafx.data.clips import Clip
from mafx.data.datasets import find_clips, find_images
from mafx.data.examples import ExampleOptions, Joint, batches
from mafx.data.latents import cache_latents
from mafx.diffusion.schedule import Schedule
from mafx.errors import InputError, is_out_of_memory
from mafx.flops import count_flops, matmul_rate
from mafx.interrupts import instead_of_leaving
from mafx.low_rank import add_update
from mafx.model import Model
from mafx.models.animator import Animator
from mafx.models.kernels import fast_dtype
from mafx.progress import StepBar
from mafx.stamps import Facts, fingerprint
from mafx.training.averages import jit_average
from mafx.training.checkpoints import SCORE, Checkpoints
from mafx.training.config import check_config
from mafx.training.page import write_page
from mafx.training.runs import make_tokenizer, model_sizes, run_facts, write_config
from mafx.training.sharding import DEVICE_MEMORY, distribute_batch, make_mesh, replicated
from mafx.training.start import start
from mafx.training.step import jit_step, step_state
from mafx.training.watch import Journal, Meter, show, video_path
from mafx.trees import Flat, unflatten

log = logging.getLogger("mafx")


def train(
    config: ml_collections.ConfigDict, workdir: Path, devices: Sequence[jax.Device] | None = None
) -> dict[str, float]:
    """Train one stage, from the newest checkpoint of the work folder if there is one.

    Args:
      config: Of the run, see `mafx.training.config`.
      workdir: Work folder of the run.
      devices: What to train on; all devices by default.

    Returns: The last scores of held-out clips, see `watch.show`; empty where none were animated.

    Raises:
      InputError: Where the config or what it names cannot be used, before anything is compiled.
      FloatingPointError: At a loss that is not finite, after keeping the state and the batch that led to it.
      KeyboardInterrupt: After Ctrl-C, which finishes the step and saves, where a command of mafx handles it.
    """
    check_config(config)
    clips, held_out = find_clips(config.data, "train"), find_clips(config.data, "test")
    images = find_images(config) if config.joint.images else []
    run = Run(config, workdir, run_facts(config, clips, images), devices)
    examples = run.open_data(clips, images)
    trained, frozen = (sum(x.size for x in tree.values()) for tree in (run.state.trainable, run.state.frozen))
    numbers = f"{trained:,} parameters are trained, {frozen:,} frozen"
    log.info("%s: %s; %d clips, %d held out.", config.stage, numbers, len(clips), len(held_out))
    if config.dtype == "bfloat16" != fast_dtype():
        log.warning("This card multiplies bfloat16 slowly; --config.dtype=float16 is faster, with a scaled loss.")

    # What is being written is completed in any case.
    with _told_where_a_process_is_gone(), contextlib.closing(run), contextlib.closing(examples):
        scores = _take_steps(run, examples, held_out)
    if run.done == config.steps and jax.process_index() == 0:
        log.info("%s", _farewell(workdir, config, scores))
    return scores


@contextlib.contextmanager
def _told_where_a_process_is_gone() -> Iterator[None]:
    """Where several processes compute together and one of them ends, the others learn it from a failed exchange."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0][:200]
        raise ConnectionError(
            f"another process is gone ({reason}); start all again, to go on from the newest checkpoint"
        ) from error


def _take_steps(run: "Run", examples: Iterator[dict[str, np.ndarray]], held_out: Sequence[Clip]) -> dict[str, float]:
    """Take the steps that are left, and return the last scores of held-out clips."""
    config, first_process = run.config, jax.process_index() == 0
    scores: dict[str, float] = {}
    bar = StepBar(config.steps, done=run.done, description=config.stage, enabled=first_process)
    stop = StopSignal()
    with (
        announce_compilation(first_process),
        contextlib.closing(bar),
        contextlib.closing(stop),
        instead_of_leaving(stop.interrupt),
    ):
        for step in range(run.done + 1, config.steps + 1):
            with run.kept_where_data_fail():
                batch = stack([next(examples) for _ in range(config.accumulate)])
            run.take_step(batch)

            stopping, last = stop(step), step == config.steps
            log_due = last or step % config.log_every == 0
            show_due = bool(config.show_clips) and (last or step % config.show_every == 0)
            save_due = last or stopping or show_due or step % config.save_every == 0
            # A step is looked at while the next one runs, so that devices do not wait.
            run.read_steps(keep=0 if log_due or show_due or save_due else 1)
            report = {"loss": f"{run.log()['loss']:.4f}"} if log_due else {}
            bar.update(**report)
            if save_due:
                run.save()
            if show_due:  # after saving: nothing is lost if it fails
                scores = run.show(held_out)
            if save_due:
                run.write_page()
            if stopping:
                break
    if run.done < config.steps:
        message = f"stopped by a signal at step {run.done}; the same command goes on from there"
        if stop.interrupted:
            raise KeyboardInterrupt(message)
        log.info("%s", message.capitalize())
    return scores


def _farewell(workdir: Path, config: ml_collections.ConfigDict, scores: dict[str, float]) -> str:
    """What was reached, where it is, and what to do next."""
    lines = [f"{workdir} has all {config.steps} steps of the {config.stage} stage."]
    if scores:
        ours, copying = scores[SCORE], scores["copying_psnr"]
        video = video_path(workdir, config.steps)
        lines.append(f"Held-out clips: {ours:.2f} dB PSNR (copying the reference: {copying:.2f}); {video} shows them.")
    lines.append(f"Next: python sample.py --workdir {workdir}")
    return "\n".join(lines)


def _make_folder(workdir: Path) -> None:
    """Make the work folder, and raise an InputError where nothing can be written into it."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        raise InputError(f"--workdir: expected a folder to write into, found {workdir} ({error.strerror})") from error


class PendingStep(NamedTuple):
    """A step that was started, and whose metrics have not been read yet."""

    number: int
    batch: dict[str, np.ndarray]
    flops: int
    metrics: dict[str, jax.Array]


class Run:
    """A run under way.

    Attributes:
      state: Parameters and optimiser, behind step `done`.
      done: Number of steps that the devices have been given.
      examples: Number of examples that were drawn for them.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        workdir: Path,
        facts: Facts,
        devices: Sequence[jax.Device] | None = None,
    ):
        self.config, self.workdir = config, workdir
        self.sizes = model_sizes(config)
        self.mesh = make_mesh(config.mesh, devices)
        if config.batch % self.mesh.size:
            raise InputError(f"config.batch: expected a multiple of the {self.mesh.size} devices, found {config.batch}")
        _make_folder(workdir)
        self.checkpoints = Checkpoints(workdir, facts, config.keep, config.keep_best)
        self.state, self.examples = start(config, self.sizes, self.mesh, workdir, self.checkpoints)
        self.done = int(self.state.step)
        if jax.process_count() > 1:  # the first process has written the vocabulary
            multihost_utils.sync_global_devices("start")
        self.tokenizer = make_tokenizer(self.sizes, workdir)
        self.journal = Journal(workdir, self.done)
        self.meter = Meter(matmul_rate(jnp.dtype(config.dtype)))
        names = ("frames", "stride", "reference", "distance", "flip", "crop")
        options = {name: config.data[name] for name in names}
        self.options = ExampleOptions(size=tuple(config.data.size), **options)
        self._step = jit_step(config, self.sizes, self.tokenizer(""), self.mesh, step_state(config, self.state))
        self._average = jit_average(config, self.mesh, self.state.trainable) if config.ema_on == "host" else None
        self._compiled: dict[int, tuple[jax.stages.Compiled, int]] = {}  # by number of frames: the step, its FLOPs
        self._pending: list[PendingStep] = []

    def open_data(self, clips: Sequence[Clip], images: Sequence[Clip]) -> Generator[dict[str, np.ndarray], None, None]:
        """This process' share of the batches, from where the run was left."""
        config = self.config
        if config.data.latent_cache:
            clips = self._cache_latents(clips, config.data.name)
            images = self._cache_latents(images, config.images.name) if images else images
        return batches(
            clips,
            self.options,
            config.batch,
            config.seed,
            images=images,
            joint=Joint(**config.joint),
            start=self.examples,
            process=jax.process_index(),
            processes=jax.process_count(),
            workers=config.data.workers,
            alike=config.accumulate,
        )

    def _cache_latents(self, clips: Sequence[Clip], name: str) -> Sequence[Clip]:
        """The clips of the data set `name`, as latents."""
        networks = Animator(self.sizes)
        autoencoder = {name: x for name, x in self.state.frozen.items() if name.startswith("autoencoder/")}
        if any(name.startswith("autoencoder/") for name in self.state.trainable):
            raise InputError("config.data.latent_cache: expected none where config.train_only trains the autoencoder")
        autoencoder = gather(autoencoder, self.mesh, jnp.dtype(self.config.dtype))

        @jax.jit
        def encode(flat: Flat, frames: jax.Array) -> Any:
            return networks.apply({"params": unflatten(flat)}, frames, method="encode_image")

        folder = expand_home(self.config.data.latent_cache) / name
        facts = {"autoencoder": fingerprint(autoencoder), "dtype": self.config.dtype}
        return cache_latents(clips, lambda frames: encode(autoencoder, frames), self.options, folder, facts)

    def take_step(self, batch: dict[str, np.ndarray]) -> None:
        """Give the devices one more step. It is compiled for every number of frames that comes."""
        self.done += 1
        self.examples += self.config.batch * self.config.accumulate
        number, ema = np.asarray(self.done, np.int32), self.state.ema
        stacked = self.config.accumulate > 1
        examples, seed = distribute_batch(self.mesh, batch, stacked), np.uint32(self.config.seed % 2**32)
        arguments = step_state(self.config, self.state), examples, number, seed
        frames = batch["motion"].shape[-4]
        if frames not in self._compiled:
            traced = self._step.trace(*arguments)
            self._compiled[frames] = traced.lower().compile(), count_flops(traced.jaxpr)
            if jax.process_index() == 0:  # now that the start has succeeded
                write_config(self.workdir, self.config)
        compiled, flops = self._compiled[frames]
        self.state, metrics = compiled(*arguments)
        if self._average is not None:  # averages in main memory
            if self.done % self.config.ema_every == 0:
                ema = self._average(ema, self.state.trainable, self.state.step, number)
            self.state = self.state._replace(ema=ema)
        self._pending.append(PendingStep(self.done, batch, flops, metrics))

    def read_steps(self, keep: int) -> None:
        """Wait for all steps but the last `keep`, and check that their losses are finite."""
        while len(self._pending) > keep:
            step = self._pending.pop(0)
            values = {name: x.item() for name, x in jax.device_get(step.metrics).items()}
            if not values.pop("finite"):
                self._keep_evidence(step)
            self.meter.add(self.config.batch * self.config.accumulate, step.flops, values)

    def _keep_evidence(self, step: PendingStep) -> None:
        """Save the state before a step, and its batch; then raise FloatingPointError."""
        path = self.workdir / f"non_finite_{step.number}_{jax.process_index()}.npz"
        np.savez(path, allow_pickle=True, **step.batch)
        examples = self.examples - (self.done - step.number + 1) * self.config.batch * self.config.accumulate
        if self.checkpoints.latest != step.number - 1:
            self.checkpoints.save(self.state, examples, self.config)
        self.checkpoints.close()
        names = "\n  ".join(np.ravel(step.batch["key"]))
        raise FloatingPointError(
            f"the loss or gradient of step {step.number} is not finite. The state before it is saved, "
            f"its batch is in {path}:\n  {names}"
        )

    def log(self) -> dict[str, float]:
        """Write means of the metrics that were read since the last time, and return them."""
        values = self.meter.read()
        self.journal.write(self.done, values)
        return values

    def show(self, held_out: Sequence[Clip]) -> dict[str, float]:
        """Animate held-out clips, write the video and its scores, and return the scores."""
        with self.meter.paused():
            scores, video = self._animate(held_out)
        self.journal.write(self.done, scores)
        self.journal.show(self.done, video)
        self.checkpoints.rate(self.done, scores)
        return scores

    def _animate(self, held_out: Sequence[Clip]) -> tuple[dict[str, float], np.ndarray]:
        config = self.config
        whole = gather(self.state.frozen | self.state.ema, self.mesh, jnp.dtype(config.dtype))
        params = unflatten(add_update(whole))
        model = Model(self.sizes, params, self.tokenizer, Schedule(**config.schedule), self.options.size)
        clips = held_out[: config.show_clips]
        return show(model, clips, self.options, config.show_frames, config.show_guidance)

    def write_page(self) -> None:
        """Write the run's page. Where that fails, it is said, and the run goes on."""
        if jax.process_index() == 0:
            with self.meter.paused():
                try:
                    write_page(self.workdir, self.config, self.done)
                except InputError as error:
                    log.warning("%s; the run goes on without.", error)

    def save(self) -> None:
        """Begin to write a checkpoint."""
        self.checkpoints.save(self.state, self.examples, self.config)

    @contextlib.contextmanager
    def kept_where_data_fail(self) -> Iterator[None]:
        """Save what is done where the next examples cannot be read. Several processes do not: they save together."""
        try:
            yield
        except Exception as error:
            if jax.process_count() > 1 or self.done == (self.checkpoints.latest or 0):
                raise
            self.read_steps(keep=0)
            self.save()
            if isinstance(error, InputError | OSError):
                message = f"{error}; step {self.done} is saved, and the same command goes on from there"
                raise type(error)(message) from error
            raise

    def close(self) -> None:
        """Wait for what is being written, but not for a process that is gone."""
        is_alone = isinstance(sys.exception(), jax.errors.JaxRuntimeError) and jax.process_count() > 1
        try:
            self.journal.close()
        finally:
            if not is_alone:
                self.checkpoints.close()


def gather(params: Flat, mesh: Mesh, dtype: jnp.dtype) -> Flat:
    """Parameters whole on this process' first device, in a dtype. What is there already is not copied."""
    whole = replicated(mesh)

    @functools.partial(jax.jit, out_shardings=whole)
    def cast(x: jax.Array) -> jax.Array:
        return x.astype(dtype)

    def move(x: jax.Array) -> jax.Array:
        if x.sharding.is_equivalent_to(whole, x.ndim) and x.dtype == dtype:
            return x.addressable_data(0)
        return cast(jax.device_put(x, x.sharding.with_memory_kind(DEVICE_MEMORY))).addressable_data(0)

    return {name: move(x) for name, x in params.items()}


def stack(batches: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The batches of a step behind one another along a new first axis; a single one stays as it is."""
    if len(batches) == 1:
        return batches[0]
    return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}


class StopSignal:
    """Whether the run was asked to stop, on all processes at the same step.

    SIGTERM asks so (preemption, a polite kill), and so does Ctrl-C.

    Attributes:
      interrupted: Whether it was Ctrl-C, in this process.
    """

    def __init__(self):
        self._set = self.interrupted = False
        self._alone = jax.process_count() == 1
        if self._alone:  # several processes agree through a handler of JAX's own
            self._before = signal.signal(signal.SIGTERM, self._handle)

    def __call__(self, step: int) -> bool:
        return self._set if self._alone else multihost_utils.reached_preemption_sync_point(step)

    def close(self) -> None:
        """Leave signals as they were."""
        if self._alone:
            signal.signal(signal.SIGTERM, self._before)

    def interrupt(self) -> None:
        """Stop as SIGTERM does."""
        self.interrupted = True
        log.info("\nInterrupted: the step is finished and saved. Ctrl-C again leaves at once.")
        os.kill(os.getpid(), signal.SIGTERM)

    def _handle(self, *_: object) -> None:
        self._set = True
