"""Checkpoints: the state, and a stamp of what it belongs to. Orbax writes them while training goes on.

WORKDIR/checkpoints/STEP/state
WORKDIR/checkpoints/STEP/stamp   run, config, data, how far the data was read, fingerprints of the arrays
WORKDIR/frozen                   the parameters that are not trained; written once, with frozen.json, its stamp
WORKDIR/scores.json              of held-out clips, by steps
"""

import contextlib
import dataclasses
import errno
import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Sharding, SingleDeviceSharding
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, LatestN

from mafx.errors import InputError, refusals
from mafx.files import check_tree
from mafx.stamps import Facts, compare_facts, fingerprint, hash_of, new_run, read_stamp, seal, unseal, write_stamp
from mafx.training.step import TrainState
from mafx.trees import Flat

SCORE = "held_out_psnr"  # the best checkpoints are those with the largest
FOLDER = "checkpoints"
FROZEN = "frozen"
FROZEN_STAMP = "frozen.json"
SCORES = "scores.json"
FULL = errno.ENOSPC, errno.EDQUOT, errno.EFBIG
DISK_ERRORS = *FULL, errno.EROFS, errno.EACCES, errno.EIO, errno.ENOTDIR, errno.ENOENT
ANOTHER = "give the one it was begun with, or another --workdir"


@dataclasses.dataclass(frozen=True)
class _Best:
    """Orbax keeps the `count` checkpoints of the best scores; the scores may come after the checkpoint."""

    scores: dict[str, float]
    count: int

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        scored = sorted((self.scores[str(x.step)], x.step) for x in checkpoints if str(x.step) in self.scores)
        best = {step for _, step in scored[len(scored) - self.count :]} if self.count else set()
        return [x.step in best for x in checkpoints]


class Checkpoints:
    """The checkpoints of a run under way.

    The newest `keep` are kept, and the `best` by their held-out score. Orbax gives a checkpoint its name when it is
    complete, so that a partial one is never picked up.

    Attributes:
      run: The name of this run, made at its first start.
    """

    def __init__(self, workdir: Path, facts: Facts, keep: int = 2, best: int = 1):
        """`facts` are what the run must have in common with its checkpoints, see `mafx.training.runs.run_facts`."""
        self._workdir, self._facts = workdir.absolute(), facts
        self._scores = read_stamp(self._workdir / SCORES) or {}
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy([LatestN(keep), _Best(self._scores, best)]),
            enable_async_checkpointing=True,
        )
        self._manager = ocp.CheckpointManager(self._workdir / FOLDER, options=options)
        self._frozen: str | None = None  # fingerprint of what lies in FROZEN
        self.run = new_run()

    @property
    def latest(self) -> int | None:
        """The step of the newest checkpoint, None where there is none."""
        return self._manager.latest_step()

    def claim_frozen(self, frozen: Flat) -> None:
        """Compare the frozen parameters of a run without checkpoints with those that the folder may have already.

        Raises:
          InputError: They are others.
        """
        expected = {"weights": fingerprint(frozen)}
        found = read_stamp(self._workdir / FROZEN_STAMP)
        if found is not None:
            advice = f"remove {FROZEN}/ and {FROZEN_STAMP}, or give another --workdir"
            compare_facts(found, expected, f"{self._workdir / FROZEN}, of an earlier run,", advice)
            self._frozen = expected["weights"]

    def save(self, state: TrainState, examples: int, config: ml_collections.ConfigDict) -> None:
        """Begin to write a checkpoint; training may go on at once.

        Args:
          state: What the run continues from.
          examples: Number of examples that were drawn for it.
          config: Of the run.
        """
        if self._frozen is None:
            self._write_frozen(state.frozen)
        facts = self._facts | {
            "run": self.run,
            "step": int(state.step),
            "examples": examples,
            "config": json.loads(config.to_json_best_effort()),
            "weights": {FROZEN: self._frozen} | _fingerprints(_changing(state)),
            "layout": {FROZEN: _layout(state.frozen), "ema": _layout(state.ema)},
        }
        with explained(f"cannot write the checkpoint of step {int(state.step)} into {self._workdir}"):
            args = ocp.args.Composite(
                state=ocp.args.StandardSave(_changing(state)), stamp=ocp.args.JsonSave(seal(facts))
            )
            self._manager.save(int(state.step), args=args)

    def _write_frozen(self, frozen: Flat) -> None:
        """Write the frozen parameters, then their stamp: without it, they are written again."""
        self._frozen = fingerprint(frozen)
        with explained(f"cannot write {self._workdir / FROZEN}"):
            if frozen:
                with ocp.StandardCheckpointer() as writer:
                    writer.save(self._workdir / FROZEN, frozen, force=True)
            if jax.process_index() == 0:
                write_stamp(self._workdir / FROZEN_STAMP, {"run": self.run, "weights": self._frozen})

    def rate(self, step: int, scores: dict[str, float]) -> None:
        """Note the scores of held-out clips at a step whose checkpoint is being written."""
        self._scores[str(step)] = scores[SCORE]
        if jax.process_index() == 0:
            write_stamp(self._workdir / SCORES, self._scores)

    def check(self) -> None:
        """Raise an InputError where the newest checkpoint was written for another config or other data."""
        stamp = self._read_stamp()
        compare_facts(stamp, self._facts, f"the checkpoint of step {self.latest} in {self._workdir}", ANOTHER)

    def restore(self, like: TrainState) -> tuple[TrainState, int]:
        """The newest state, in the shapes and shardings of `like` (arrays or shapes), and the examples drawn for it.

        Raises:
          InputError: The checkpoint is damaged, or belongs to other frozen parameters.
        """
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        stamp = self._read_stamp()
        self.run, self._frozen = stamp["run"], stamp["weights"][FROZEN]
        args = ocp.args.Composite(state=ocp.args.StandardRestore(_changing(abstract)))
        with _readable(self._workdir / FOLDER / str(self.latest)):
            restored = self._manager.restore(self.latest, args=args)["state"]
        _check_arrays(self._workdir, stamp, restored)
        frozen = _read_frozen(self._workdir, stamp, lambda _: abstract.frozen)
        return TrainState(frozen=frozen, **restored), stamp["examples"]

    def _read_stamp(self) -> Facts:
        return _read_checkpoint_stamp(self._manager, self._workdir, self.latest)

    def close(self) -> None:
        """Wait for what is being written."""
        with explained(f"cannot write a checkpoint into {self._workdir}"):
            self._manager.wait_until_finished()
            self._manager.close()


def _changing(state: TrainState) -> dict:
    """What changes from step to step."""
    return {name: x for name, x in state._asdict().items() if name != FROZEN and x is not None}


def _fingerprints(parts: dict[str, Any]) -> dict[str, str]:
    """A fingerprint for each part of a state, which are trees of arrays."""
    return {
        name: fingerprint({jax.tree_util.keystr(path): x for path, x in jax.tree.leaves_with_path(part)})
        for name, part in parts.items()
    }


def _layout(params: Flat) -> str:
    """Changes with the names, shapes and dtypes of parameters. It is known before any of them is read."""
    return hash_of({name: [list(x.shape), str(x.dtype)] for name, x in params.items()})


# -- Errors of what orbax reads and writes


def _readable(path: Path) -> AbstractContextManager[None]:
    """Whatever orbax and its libraries raise at a damaged checkpoint becomes one sentence."""
    return refusals(f"{path} is damaged; {_REMOVE}")


_REMOVE = "remove it to use the checkpoint before, or give another --workdir"


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """What cannot be written into a work folder, in one sentence that begins with `what`."""
    try:
        yield
    except (OSError, ValueError) as error:
        # Orbax leaves coroutines behind that it did not begin; Python would complain of them after our sentence.
        warnings.filterwarnings("ignore", message="coroutine .* was never awaited")
        text = str(error)
        reason = next((x for x in map(os.strerror, DISK_ERRORS) if x in text), text.strip().partition("\n")[0][:300])
        raise OSError(f"{what}: {reason}; the same command goes on from the checkpoint before") from error


def _check_arrays(workdir: Path, stamp: Facts, parts: dict[str, Any]) -> None:
    for name, found in _fingerprints(parts).items():
        if stamp["weights"][name] != found:
            path = workdir / FOLDER / str(stamp["step"])
            expected = stamp["weights"][name]
            raise InputError(f"{path} is damaged: {name} has the fingerprint {found}, not {expected}; {_REMOVE}")


# -- Reading


def _read_checkpoint_stamp(manager: ocp.CheckpointManager, workdir: Path, step: int | None) -> Facts:
    path = workdir / FOLDER / str(step)
    with _readable(path):
        return unseal(manager.restore(step, args=ocp.args.Composite(stamp=ocp.args.JsonRestore()))["stamp"], path)


def _read_frozen(workdir: Path, stamp: Facts, place: Callable[[Flat], dict[str, Any]]) -> Flat:
    """The frozen parameters, which must be those that a checkpoint was trained with.

    Args:
      workdir: Of the run.
      stamp: Of the checkpoint.
      place: Gives shapes and shardings for shapes.
    """
    path = workdir / FROZEN
    expected = {"weights": stamp["weights"][FROZEN]}
    advice = "they belong to other checkpoints: give another --workdir"
    compare_facts(read_stamp(workdir / FROZEN_STAMP) or {}, expected, f"{path}", advice)
    if expected["weights"] == fingerprint({}):  # everything is trained
        return {}
    with _readable(path), ocp.StandardCheckpointer() as reader:
        shapes = _expected_shapes(reader.metadata(path).item_metadata.tree, stamp, FROZEN)
        frozen = reader.restore(path, place(shapes))
    found = fingerprint(frozen)
    if found != expected["weights"]:
        raise InputError(f"{path} is damaged: it has the fingerprint {found}, expected {expected['weights']}")
    return frozen


def _expected_shapes(shapes: Flat, stamp: Facts, part: str) -> Flat:
    """The shapes, unless they are others than the stamp says: a damaged one could ask for any amount of memory."""
    if _layout(shapes) != stamp["layout"][part]:
        raise ValueError(f"{part} has other names, shapes or dtypes than its stamp says")
    return shapes


def read_parameters(
    workdir: Path,
    checkpoint: int | str = "latest",
    sharding: Callable[[Flat], dict[str, Sharding]] | None = None,
) -> tuple[Flat, Facts]:
    """The parameters of a checkpoint, and its stamp. Trained parameters are their averages (EMA).

    Args:
      workdir: Work folder of the run.
      checkpoint: Number of a step, "latest" or "best".
      sharding: Where the parameters go, by their names and shapes; by default this process' first device.

    Raises:
      InputError: Where there is no such checkpoint, or it is damaged.
    """
    workdir = workdir.absolute()
    here = SingleDeviceSharding(jax.local_devices()[0])

    def place(tree: Flat) -> dict[str, jax.ShapeDtypeStruct]:
        where = sharding(tree) if sharding else dict.fromkeys(tree, here)
        return {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where[name]) for name, x in tree.items()}

    with _open(workdir) as manager:
        step = _find_step(manager, workdir, checkpoint)
        stamp = _read_checkpoint_stamp(manager, workdir, step)
        with _readable(workdir / FOLDER / str(step)):
            ema = place(_expected_shapes(manager.item_metadata(step)["state"].tree["ema"], stamp, "ema"))
            restore_args = ocp.checkpoint_utils.construct_restore_args({"ema": ema})
            state = ocp.args.PyTreeRestore({"ema": ema}, restore_args=restore_args, partial_restore=True)
            restored = manager.restore(step, args=ocp.args.Composite(state=state))["state"]
    _check_arrays(workdir, stamp, restored)
    return _read_frozen(workdir, stamp, place) | restored["ema"], stamp


def last_arrays(workdir: Path) -> dict[str, np.ndarray]:
    """All arrays of the newest checkpoint, and the frozen ones, as they lie on disk."""
    step = find_step(workdir, "latest")
    folders = [workdir.absolute() / FOLDER / str(step) / "state", workdir.absolute() / FROZEN]
    trees = {}
    with ocp.PyTreeCheckpointer() as reader:
        for path in filter(Path.exists, folders):
            saved = reader.metadata(path).item_metadata.tree  # of devices that need not be here
            on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
            trees[path.name] = reader.restore(path, restore_args=on_host)
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree.leaves_with_path(trees)}


def find_step(workdir: Path, checkpoint: int | str) -> int:
    """The step of a checkpoint: a number that must be there, "latest" or "best". Raises InputError."""
    with _open(workdir) as manager:
        return _find_step(manager, workdir, checkpoint)


def read_checkpoint_stamp(workdir: Path, checkpoint: int | str) -> Facts:
    """The stamp of a checkpoint, which `find_step` describes. Raises InputError."""
    with _open(workdir) as manager:
        return _read_checkpoint_stamp(manager, workdir, _find_step(manager, workdir, checkpoint))


@contextlib.contextmanager
def _open(workdir: Path) -> Iterator[ocp.CheckpointManager]:
    if not (workdir / FOLDER).is_dir():
        raise InputError(f"expected a work folder of train.py, found no {FOLDER} in {workdir}")
    for folder in (FOLDER, FROZEN):
        check_tree(workdir / folder)
    handlers = {"stamp": ocp.JsonCheckpointHandler(), "state": ocp.PyTreeCheckpointHandler()}
    with (
        _readable(workdir / FOLDER),
        ocp.CheckpointManager(workdir.absolute() / FOLDER, item_handlers=handlers) as manager,
    ):
        yield manager


def _find_step(manager: ocp.CheckpointManager, workdir: Path, checkpoint: int | str) -> int:
    steps = manager.all_steps()
    if not steps:
        raise InputError(f"there is no complete checkpoint in {workdir} yet")
    if checkpoint == "latest":
        return max(steps)
    if checkpoint == "best":
        return _best_step(steps, workdir)
    if str(checkpoint) not in map(str, steps):
        known = ", ".join(map(str, sorted(steps)))
        raise InputError(f"expected latest, best or one of the steps {known} of {workdir}, found {checkpoint}")
    return int(checkpoint)


def _best_step(steps: Sequence[int], workdir: Path) -> int:
    scores = read_stamp(workdir / SCORES) or {}
    scored = [step for step in steps if str(step) in scores]
    if not scored:
        raise InputError(f"no checkpoint in {workdir} has held-out scores; ask for the latest")
    return max(scored, key=lambda step: scores[str(step)])
