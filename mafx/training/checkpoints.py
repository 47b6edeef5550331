"""Checkpoints: the state, where the data stood, and the config, written by orbax while training goes on."""

import json
from pathlib import Path

import jax
import ml_collections
import orbax.checkpoint as ocp

from mafx.errors import InputError
from mafx.training.step import State


class Checkpoints:
    """The checkpoints of a work folder. Orbax gives one its name when it is whole, so that a half-written one is never picked up."""

    def __init__(self, workdir: Path, keep: int = 2):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(workdir.absolute() / "checkpoints", options=options)

    @property
    def latest(self) -> int | None:
        """The step of the newest checkpoint."""
        return self._manager.latest_step()

    def save(self, state: State, position: dict, config: ml_collections.ConfigDict) -> None:
        """Begin to write; training may go on at once."""
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state._asdict()),
            position=ocp.args.JsonSave(position),
            config=ocp.args.JsonSave(json.loads(config.to_json_best_effort())),
        )
        self._manager.save(int(state.step), args=args)

    def restore(self, like: State) -> tuple[State, dict]:
        """The newest state, on the devices and in the shardings of `like`, and the data's position."""
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract._asdict()), position=ocp.args.JsonRestore())
        restored = self._manager.restore(self.latest, args=args)
        return State(**restored["state"]), restored["position"]

    def close(self) -> None:
        """Wait for what is being written."""
        self._manager.wait_until_finished()
        self._manager.close()


def read_parameters(workdir: Path) -> tuple[dict[str, jax.Array], ml_collections.ConfigDict]:
    """The parameters of a work folder's newest checkpoint, averaged (EMA) where they were trained, as a flat dict; and its config."""
    if not (workdir / "checkpoints").is_dir():
        raise InputError(f"expected a work folder of train.py, found no checkpoints in {workdir}")
    handlers = {"state": ocp.StandardCheckpointHandler(), "position": ocp.JsonCheckpointHandler(), "config": ocp.JsonCheckpointHandler()}
    with ocp.CheckpointManager(workdir.absolute() / "checkpoints", item_handlers=handlers) as manager:
        step = manager.latest_step()
        if step is None:
            raise InputError(f"there is no whole checkpoint in {workdir} yet")
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])  # wherever it was saved from
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), manager.item_metadata(step)["state"].tree)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), config=ocp.args.JsonRestore())
        restored = manager.restore(step, args=args)
    return restored["state"]["frozen"] | restored["state"]["ema"], ml_collections.ConfigDict(restored["config"])
