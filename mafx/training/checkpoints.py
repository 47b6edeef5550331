"""Checkpoints: the state, how far the data was read, and the config. Orbax writes them while training goes on.

WORKDIR/checkpoints/STEP/{state,position,config,metrics}
WORKDIR/frozen     the parameters that are not trained; written once
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import ml_collections
import orbax.checkpoint as ocp
from jax.sharding import Sharding, SingleDeviceSharding
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from mafx.errors import InputError
from mafx.training.step import Flat, TrainState

SCORE = "held_out_psnr"  # the best checkpoints are those with the largest
FOLDER = "checkpoints"
FROZEN = "frozen"


def _score(metrics: dict[str, float]) -> float:
    return metrics[SCORE]


class Checkpoints:
    """The checkpoints of a run under way.

    The newest `keep` are kept, and the `best` by their held-out score. Orbax gives a checkpoint its name when it is
    complete, so that a partial one is never picked up.
    """

    def __init__(self, workdir: Path, keep: int = 2, best: int = 1):
        policies = [LatestN(keep)]
        if best:
            policies.append(BestN(get_metric_fn=_score, n=best, keep_checkpoints_without_metrics=False))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy(policies),
            best_fn=_score,  # makes orbax write the scores, so that a run that goes on knows them
            enable_async_checkpointing=True,
        )
        self._manager = ocp.CheckpointManager(workdir.absolute() / FOLDER, options=options)
        self._frozen = workdir.absolute() / FROZEN

    @property
    def latest(self) -> int | None:
        """The step of the newest checkpoint, None where there is none."""
        return self._manager.latest_step()

    def save(
        self,
        state: TrainState,
        position: dict[str, int],
        config: ml_collections.ConfigDict,
        scores: dict[str, float] | None = None,
    ) -> None:
        """Begin to write a checkpoint; training may go on at once.

        Args:
          state: What the run continues from.
          position: How far the data was read.
          config: Of the run.
          scores: Of held-out clips.
        """
        if not self._frozen.exists():
            with ocp.StandardCheckpointer() as writer:
                writer.save(self._frozen, state.frozen)
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(_changing(state)),
            position=ocp.args.JsonSave(position),
            config=ocp.args.JsonSave(json.loads(config.to_json_best_effort())),
        )
        self._manager.save(int(state.step), args=args, metrics=scores if scores and SCORE in scores else None)

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, int]]:
        """The newest state, in the shapes and shardings of `like` (arrays or shapes), and the position in the data."""
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(_changing(abstract)), position=ocp.args.JsonRestore())
        restored = self._manager.restore(self.latest, args=args)
        with ocp.StandardCheckpointer() as reader:
            frozen = reader.restore(self._frozen, abstract.frozen)
        return TrainState(frozen=frozen, **restored["state"]), restored["position"]

    def close(self) -> None:
        """Wait for what is being written."""
        self._manager.wait_until_finished()
        self._manager.close()


def _changing(state: TrainState) -> dict:
    """What changes from step to step."""
    return {name: x for name, x in state._asdict().items() if name != "frozen"}


def read_parameters(
    workdir: Path,
    checkpoint: int | str = "latest",
    sharding: Callable[[Flat], dict[str, Sharding]] | None = None,
) -> tuple[Flat, ml_collections.ConfigDict]:
    """The parameters of a checkpoint, and its config. Trained parameters are their averages (EMA).

    Args:
      workdir: Work folder of the run.
      checkpoint: Number of a step, "latest" or "best".
      sharding: Where the parameters go, by their names and shapes; by default this process' first device.

    Raises:
      InputError: Where there is no such checkpoint.
    """
    here = SingleDeviceSharding(jax.local_devices()[0])

    def place(tree: Flat) -> dict[str, jax.ShapeDtypeStruct]:
        where = sharding(tree) if sharding else dict.fromkeys(tree, here)
        return {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where[name]) for name, x in tree.items()}

    with _open(workdir) as manager, ocp.StandardCheckpointer() as reader:
        step = _find_step(manager, workdir, checkpoint)
        ema = place(manager.item_metadata(step)["state"].tree["ema"])
        restore_args = ocp.checkpoint_utils.construct_restore_args({"ema": ema})
        state = ocp.args.PyTreeRestore({"ema": ema}, restore_args=restore_args, partial_restore=True)
        restored = manager.restore(step, args=ocp.args.Composite(state=state, config=ocp.args.JsonRestore()))
        frozen_folder = workdir.absolute() / FROZEN
        frozen = reader.restore(frozen_folder, place(reader.metadata(frozen_folder).item_metadata.tree))
    return frozen | restored["state"]["ema"], ml_collections.ConfigDict(restored["config"])


def find_step(workdir: Path, checkpoint: int | str) -> int:
    """The step of a checkpoint: a number that must be there, "latest" or "best". Raises InputError."""
    with _open(workdir) as manager:
        return _find_step(manager, workdir, checkpoint)


@contextlib.contextmanager
def _open(workdir: Path) -> Iterator[ocp.CheckpointManager]:
    if not (workdir / FOLDER).is_dir():
        raise InputError(f"expected a work folder of train.py, found no {FOLDER} in {workdir}")
    handlers = {name: ocp.JsonCheckpointHandler() for name in ("position", "config", "metrics")}
    handlers["state"] = ocp.PyTreeCheckpointHandler()
    with ocp.CheckpointManager(workdir.absolute() / FOLDER, item_handlers=handlers) as manager:
        yield manager


def _find_step(manager: ocp.CheckpointManager, workdir: Path, checkpoint: int | str) -> int:
    steps = manager.all_steps()
    if not steps:
        raise InputError(f"there is no complete checkpoint in {workdir} yet")
    if checkpoint == "latest":
        return max(steps)
    if checkpoint == "best":
        return _best_step(manager, workdir)
    if str(checkpoint) not in map(str, steps):
        known = ", ".join(map(str, sorted(steps)))
        raise InputError(f"expected latest, best or one of the steps {known} of {workdir}, found {checkpoint}")
    return int(checkpoint)


def _best_step(manager: ocp.CheckpointManager, workdir: Path) -> int:
    scores = {}
    for step in manager.all_steps():
        if (workdir / FOLDER / str(step) / "metrics").is_dir():
            restored = manager.restore(step, args=ocp.args.Composite(metrics=ocp.args.JsonRestore()))
            scores[step] = _score(restored["metrics"])
    if not scores:
        raise InputError(f"no checkpoint in {workdir} has held-out scores; ask for the latest")
    return max(scores, key=scores.__getitem__)
