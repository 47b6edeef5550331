"""Checkpoints: the state, how far the data was read, and the config, written by orbax while training goes on.

WORKDIR/checkpoints/STEP/{state,position,config,metrics}
WORKDIR/frozen     the parameters that are not trained, once
"""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import ml_collections
import orbax.checkpoint as ocp
from jax.sharding import Sharding, SingleDeviceSharding
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from mafx.errors import InputError
from mafx.training.step import Flat, TrainState

SCORE = "held_out_psnr"  # the best checkpoints are those with the largest


class Checkpoints:
    """The checkpoints of a work folder. Orbax gives one its name when it is whole, so that a half-written one is never picked up.

    Kept are the newest `keep`, and beside them the `best` by held-out score.
    """

    def __init__(self, workdir: Path, keep: int = 2, best: int = 1):
        score = lambda metrics: metrics[SCORE]  # noqa: E731
        policies = [LatestN(keep)] + [
            BestN(get_metric_fn=score, n=best, keep_checkpoints_without_metrics=False)
        ] * bool(best)
        # with best_fn the scores are written too, so that a run that goes on knows them
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy(policies), best_fn=score, enable_async_checkpointing=True
        )
        self._manager = ocp.CheckpointManager(workdir.absolute() / "checkpoints", options=options)
        self._frozen = workdir.absolute() / "frozen"

    @property
    def latest(self) -> int | None:
        """The step of the newest checkpoint."""
        return self._manager.latest_step()

    def save(
        self,
        state: TrainState,
        position: dict,
        config: ml_collections.ConfigDict,
        metrics: dict[str, float] | None = None,
    ) -> None:
        """Begin to write; training may go on at once."""
        if not self._frozen.exists():
            with ocp.StandardCheckpointer() as writer:
                writer.save(self._frozen, state.frozen)
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(_moving(state)),
            position=ocp.args.JsonSave(position),
            config=ocp.args.JsonSave(json.loads(config.to_json_best_effort())),
        )
        self._manager.save(int(state.step), args=args, metrics=metrics if metrics and SCORE in metrics else None)

    def restore(self, like: TrainState) -> tuple[TrainState, dict]:
        """The newest state, in the shapes and shardings of `like` (arrays, or `jax.ShapeDtypeStruct`s), and the data's position."""
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(_moving(abstract)), position=ocp.args.JsonRestore())
        restored = self._manager.restore(self.latest, args=args)
        with ocp.StandardCheckpointer() as reader:
            frozen = reader.restore(self._frozen, abstract.frozen)
        return TrainState(frozen=frozen, **restored["state"]), restored["position"]

    def close(self) -> None:
        """Wait for what is being written."""
        self._manager.wait_until_finished()
        self._manager.close()


def _moving(state: TrainState) -> dict:
    """What changes from step to step."""
    return {name: x for name, x in state._asdict().items() if name != "frozen"}


def read_parameters(
    workdir: Path, step: int | str = "latest", sharding: Callable[[Flat], dict[str, Sharding]] | None = None
) -> tuple[Flat, ml_collections.ConfigDict]:
    """The parameters of a checkpoint, averaged (EMA) where they were trained, as a flat dict; and its config.

    `step` is a number, "latest" or "best". They come onto this process' first device, or to where `sharding` places them by name and shape.
    """
    with _reading(workdir) as manager, ocp.StandardCheckpointer() as reader:
        step = _find_step(manager, workdir, step)
        here = SingleDeviceSharding(jax.local_devices()[0])  # wherever it was saved from
        sharding = sharding or (lambda tree: dict.fromkeys(tree, here))

        def place(tree: Flat) -> Flat:
            where = sharding(tree)
            return {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where[name]) for name, x in tree.items()}

        ema = place(manager.item_metadata(step)["state"].tree["ema"])
        arguments = ocp.checkpoint_utils.construct_restore_args({"ema": ema})
        state = ocp.args.PyTreeRestore({"ema": ema}, restore_args=arguments, partial_restore=True)
        restored = manager.restore(step, args=ocp.args.Composite(state=state, config=ocp.args.JsonRestore()))
        frozen_folder = workdir.absolute() / "frozen"
        frozen = reader.restore(frozen_folder, place(reader.metadata(frozen_folder).item_metadata.tree))
    return frozen | restored["state"]["ema"], ml_collections.ConfigDict(restored["config"])


def find_step(workdir: Path, step: int | str) -> int:
    """The number of a checkpoint that is there: the `step`, "latest" or "best". Raises InputError."""
    with _reading(workdir) as manager:
        return _find_step(manager, workdir, step)


def _reading(workdir: Path) -> ocp.CheckpointManager:
    if not (workdir / "checkpoints").is_dir():
        raise InputError(f"expected a work folder of train.py, found no checkpoints in {workdir}")
    handlers = {"state": ocp.PyTreeCheckpointHandler()} | {
        name: ocp.JsonCheckpointHandler() for name in ("position", "config", "metrics")
    }
    return ocp.CheckpointManager(workdir.absolute() / "checkpoints", item_handlers=handlers)


def _find_step(manager: ocp.CheckpointManager, workdir: Path, step: int | str) -> int:
    steps = manager.all_steps()
    if not steps:
        raise InputError(f"there is no whole checkpoint in {workdir} yet")
    if step == "latest":
        return max(steps)
    if step == "best":
        scored = (s for s in steps if (workdir / "checkpoints" / str(s) / "metrics").is_dir())
        scores = {
            s: manager.restore(s, args=ocp.args.Composite(metrics=ocp.args.JsonRestore()))["metrics"][SCORE]
            for s in scored
        }
        if not scores:
            raise InputError(f"no checkpoint in {workdir} has held-out scores; ask for the latest")
        return max(scores, key=scores.get)
    if str(step) not in map(str, steps):
        raise InputError(f"expected one of the steps {', '.join(map(str, sorted(steps)))} of {workdir}, found {step}")
    return int(step)
