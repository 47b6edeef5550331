"""What lies on disk says what it belongs to: others are refused by the name of what differs, flipped bits are told."""

import json
import resource
import shutil

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

import mafx
from mafx import bundled
from mafx.errors import InputError
from mafx.stamps import compare_facts, fingerprint, read_stamp, write_stamp
from mafx.training.checkpoints import Checkpoints, read_parameters
from mafx.training.sharding import MAIN_MEMORY, make_mesh, parameter_sharding
from mafx.training.step import TrainState

FACTS = {"config.batch": 8, "config.data": "1234", "version": "0"}


def test_a_fingerprint_changes_with_each_bit_and_with_places_and_shapes(rng):
    x = {"a": rng.normal(size=(5, 6)).astype(np.float32), "b": np.arange(3, dtype=np.float16)}
    seen = {fingerprint(x), fingerprint({"a": x["a"].T, "b": x["b"]}), fingerprint({"a": x["a"], "c": x["b"]})}
    seen |= {fingerprint({"a": x["a"][::-1], "b": x["b"]}), fingerprint({"a": x["a"].view(np.int32), "b": x["b"]})}
    for bit in (0, 7, 8 * 119, 8 * 120 - 1):
        other = {name: values.copy() for name, values in x.items()}
        other["a"].reshape(-1).view(np.uint8)[bit // 8] ^= 1 << bit % 8
        seen.add(fingerprint(other))
    assert len(seen) == 9
    assert fingerprint(dict(reversed(x.items()))) == fingerprint({name: values.copy() for name, values in x.items()})


def test_a_fingerprint_is_the_same_wherever_arrays_live(rng):
    host = {"a": rng.normal(size=(16, 24)).astype(np.float32), "b": rng.normal(size=3).astype(jnp.bfloat16)}
    mesh = make_mesh({"fsdp": 4}, jax.devices()[:4])
    spread = jax.device_put(host, parameter_sharding(mesh, host, 8))
    assert spread["a"].addressable_shards[0].data.size == 96
    in_main_memory = {name: jax.device_put(x, x.sharding.with_memory_kind(MAIN_MEMORY)) for name, x in spread.items()}
    assert fingerprint(host) == fingerprint(spread) == fingerprint(in_main_memory)


def test_a_device_sums_as_the_host_does(rng, monkeypatch):
    """As on an accelerator, where arrays are summed by a compiled program."""
    host = {
        "a": rng.normal(size=(16, 24)).astype(np.float32),
        "b": np.float32(3),
        "c": np.arange(5, dtype=jnp.bfloat16),
    }
    spread = jax.device_put(host, parameter_sharding(make_mesh({"fsdp": 8}), host, 8))
    expected = fingerprint(host)
    monkeypatch.setattr(type(spread["a"]), "is_fully_addressable", False)
    assert fingerprint(spread) == expected


def test_a_stamp_that_was_changed_is_told(tmp_path):
    path = tmp_path / "stamp.json"
    assert read_stamp(path) is None
    write_stamp(path, {"size": (32, 32), "run": "a"})
    assert read_stamp(path) == {"size": [32, 32], "run": "a"}
    text = path.read_text()
    for broken in (text.replace("32", "33", 1), text[:-5], "[]", "{}", "[" * 10**5, ""):
        path.write_text(broken)
        with pytest.raises(InputError, match=r"stamp\.json is damaged"):
            read_stamp(path)


def test_a_patch_release_goes_on_and_another_does_not():
    compare_facts({"version": "0.1.7"}, {"version": "0.1.0"}, "the run", "stop")
    for found, expected in (("0.1.7", "0.2.0"), ("0.1.7", "1.1.7"), (None, "0.1.0"), (0.1, "0.1.0")):
        with pytest.raises(InputError, match=f"the run has version {found!r}, expected {expected!r}; stop"):
            compare_facts({"version": found}, {"version": expected}, "the run", "stop")
    with pytest.raises(InputError, match=r"batch '0\.1\.7'"):
        compare_facts({"batch": "0.1.7"}, {"batch": "0.1.0"}, "the run", "stop")


def make_state(seed, step=3):
    rng = np.random.default_rng(seed)
    kernel = {"a/kernel": jnp.asarray(rng.normal(size=(64, 64)), jnp.float32)}
    frozen = {f"b{i}/kernel": jnp.asarray(rng.normal(size=(40, 40)), jnp.bfloat16) for i in range(3)}
    return TrainState(jnp.asarray(step), kernel, frozen, (kernel,), jax.tree.map(lambda x: x + 1, kernel))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A work folder, and the state in it."""
    workdir, state = tmp_path_factory.mktemp("run") / "run", make_state(0)
    checkpoints = Checkpoints(workdir, FACTS)
    checkpoints.save(state, 7, ml_collections.ConfigDict({"model": "micro"}))
    checkpoints.close()
    return workdir, state


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved[0], tmp_path / "run")


def restore(workdir, like, facts=FACTS):
    checkpoints = Checkpoints(workdir, facts)
    checkpoints.check()
    return checkpoints.restore(like)


@pytest.mark.parametrize("part", ["frozen", "checkpoints/3/state", "checkpoints/3/stamp"])
def test_flipped_bits_are_told(part, saved, copy, rng):
    """In each file in turn: told, or of no consequence, since not all bytes of orbax's files are used."""
    state, told = saved[1], 0
    for path in sorted(x for x in (copy / part).rglob("*") if x.is_file() and x.stat().st_size):
        before = path.read_bytes()
        for place in rng.integers(len(before), size=2):
            changed = bytearray(before)
            changed[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(changed)
            try:
                restored, examples = restore(copy, state)
                params, _ = read_parameters(copy)
            except InputError as error:
                assert "damaged" in str(error) and str(copy) in str(error) and "\n" not in str(error)
                told += 1
                continue
            assert examples == 7
            jax.tree.map(np.testing.assert_array_equal, restored, state)
            jax.tree.map(np.testing.assert_array_equal, params, state.frozen | state.ema)
        path.write_bytes(before)
    assert told > 1


@pytest.mark.parametrize(("name", "value"), [("config.batch", 4), ("config.data", "other"), ("version", "1")])
def test_a_run_goes_on_with_what_it_was_begun_with(name, value, saved):
    with pytest.raises(InputError, match=rf"step 3 in .* has {name} {FACTS[name]!r}, expected {value!r}; give the one"):
        restore(saved[0], saved[1], FACTS | {name: value})


def test_frozen_parameters_of_other_weights_are_refused(saved, copy):
    """At a start without checkpoints, at going on, and at reading."""
    other = make_state(1)
    shutil.rmtree(copy / "checkpoints")
    checkpoints = Checkpoints(copy, FACTS)
    with pytest.raises(InputError, match="frozen, of an earlier run, has weights"):
        checkpoints.claim_frozen(other.frozen)
    checkpoints.claim_frozen(saved[1].frozen)
    for name in ("frozen", "frozen.json"):
        if (copy / name).is_dir():
            shutil.rmtree(copy / name)
        else:
            (copy / name).unlink()
    checkpoints = Checkpoints(copy, FACTS)
    checkpoints.save(other, 7, ml_collections.ConfigDict())
    checkpoints.close()
    shutil.rmtree(copy / "checkpoints")
    shutil.copytree(saved[0] / "checkpoints", copy / "checkpoints")
    for use in (lambda: restore(copy, saved[1]), lambda: read_parameters(copy)):
        with pytest.raises(InputError, match="frozen has weights .* they belong to other checkpoints"):
            use()


def test_frozen_parameters_without_a_stamp_are_written_anew(saved, copy):
    """As a kill between the two leaves them."""
    (copy / "frozen.json").unlink()
    shutil.rmtree(copy / "checkpoints")
    other = make_state(1)
    checkpoints = Checkpoints(copy, FACTS)
    checkpoints.claim_frozen(other.frozen)
    checkpoints.save(other, 7, ml_collections.ConfigDict())
    checkpoints.close()
    restored, _ = restore(copy, other)
    jax.tree.map(np.testing.assert_array_equal, restored, other)


def test_a_run_of_which_nothing_is_frozen(tmp_path):
    state = make_state(0)._replace(frozen={})
    checkpoints = Checkpoints(tmp_path, FACTS)
    checkpoints.claim_frozen({})
    checkpoints.save(state, 7, ml_collections.ConfigDict())
    checkpoints.close()
    assert restore(tmp_path, state)[0].frozen == {}
    assert read_parameters(tmp_path)[0].keys() == {"a/kernel"}


@pytest.fixture
def full_disk(monkeypatch):
    """Files cannot grow beyond a few bytes until it is called, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_sentence_and_the_checkpoint_before_serves(copy, saved, full_disk):
    state = make_state(0)
    checkpoints = Checkpoints(copy, FACTS)
    checkpoints.restore(saved[1])
    with pytest.raises(OSError, match=r"run: File too large; the same command goes on from the .* before") as error:
        checkpoints.save(state._replace(step=jnp.asarray(4)), 8, ml_collections.ConfigDict())
        checkpoints.close()
    full_disk()
    assert len(str(error.value).splitlines()) == 1
    restored, examples = restore(copy, saved[1])
    assert examples == 7
    jax.tree.map(np.testing.assert_array_equal, restored, saved[1])


def test_the_bundled_model_is_whole(tmp_path, monkeypatch):
    for name in ("puppets.npz", "stamp.json", "config.json"):
        shutil.copy(bundled.FOLDER / name, tmp_path)
    monkeypatch.setattr(bundled, "FOLDER", tmp_path)
    box = tmp_path / "puppets.npz"
    content = bytearray(box.read_bytes())
    content[len(content) // 2] ^= 4
    box.write_bytes(content)
    with pytest.raises(InputError, match="install mafx again"):
        bundled.load_bundled()


def test_exported_weights_are_whole(micro, tmp_path):
    micro.origin.update({"run": "abc", "step": 5})
    mafx.save_pretrained(micro, tmp_path)
    micro.origin.clear()
    model = mafx.load_pretrained(tmp_path)
    assert model.origin == {"run": "abc", "step": 5}
    assert model.stamp()["weights"] == micro.stamp()["weights"]
    for folder in ("sd-vae-ft-mse", "MagicAnimate/temporal_attention"):
        path = max((tmp_path / folder).iterdir(), key=lambda x: x.stat().st_size)
        before = path.read_bytes()
        changed = bytearray(before)
        changed[len(before) // 2] ^= 1
        path.write_bytes(changed)
        with pytest.raises(InputError, match="has sd-vae-ft-mse '.*remove stamp.json if|ckpt is damaged"):
            mafx.load_pretrained(tmp_path)
        path.write_bytes(before)
    assert json.loads((tmp_path / "stamp.json").read_text())["dtype"] == "float32"
