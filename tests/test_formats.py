import collections
import io
import os
import pickle
import pickletools
import struct
import sys
import types
import zipfile

import ml_dtypes
import numpy as np
import pytest

from mafx.errors import InputError
from mafx.pretrained.formats import open_tensors
from mafx.pretrained.safetensors_files import write_safetensors
from mafx.pretrained.torch_files import write_torch_archive

DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16, np.int64]


@pytest.fixture
def tensors(rng):
    matrices = {f"a.{np.dtype(dtype).name}": rng.normal(0, 9, (3, 4)).astype(dtype) for dtype in DTYPES}
    return matrices | {"one": np.float32([2.5]), "scalar": np.asarray(2.5, np.float32)}


@pytest.mark.parametrize("name", ["x.safetensors", "x.ckpt"])
def test_round_trip_is_bit_equal(tmp_path, tensors, name):
    path = tmp_path / name
    write_safetensors(path, tensors) if name.endswith("safetensors") else write_torch_archive(path, tensors.items())
    file = open_tensors(path)
    assert file.shapes == {key: x.shape for key, x in tensors.items()}
    for key, x in tensors.items():
        got = file.read(key)
        assert got.dtype == x.dtype
        assert got.tobytes() == x.tobytes()


def test_torch_reads_what_we_write(tmp_path, tensors):
    torch = pytest.importorskip("torch", reason="PyTorch, for the comparison only, is not installed")
    write_torch_archive(tmp_path / "x.ckpt", tensors.items())
    loaded = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert loaded["global_step"] == 0
    for key, x in tensors.items():
        np.testing.assert_array_equal(loaded["state_dict"][key].to(torch.float64).numpy(), x.astype(np.float64))


def test_reads_what_torch_wrote(published):
    """The fixture was written by torch.save; its tensors include views of a storage, and names have a prefix."""
    file = open_tensors(published / "MagicAnimate" / "temporal_attention" / "temporal_attention.ckpt")
    assert len(file.shapes) == 560
    assert file.read("module.down_blocks.0.motion_modules.0.temporal_transformer.proj_in.weight").shape == (32, 32)


class Malicious:
    def __init__(self, call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "call", [(os.system, ("touch hacked",)), (eval, ("1",)), (getattr, ("", "join")), (__import__, ("os",))]
)
def test_malicious_pickles_are_refused_and_not_run(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("x.ckpt", "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps({"state_dict": {"a": Malicious(call)}}, protocol=2))
    with pytest.raises(InputError, match="refused: it asks for"):
        open_tensors(tmp_path / "x.ckpt")
    assert not (tmp_path / "hacked").exists()


def old_numpy(program):
    """As NumPy 1 would have written it; only protocols before 4 have names in lines."""
    return program.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def python_2(program):
    """Bytes as text, which Python 2 did not distinguish."""
    changed = bytearray(program)
    for opcode, _, place in pickletools.genops(program):
        if opcode.name in ("SHORT_BINBYTES", "BINBYTES"):
            changed[place] = ord("U" if opcode.name == "SHORT_BINBYTES" else "T")
    return bytes(changed)


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("change", [bytes, old_numpy, python_2])
def test_pickles_of_arrays(tmp_path, rng, protocol, change):
    arrays = {f"a.{dtype}": rng.normal(0, 99, (3, 4)).astype(dtype) for dtype in ("f2", "f4", "f8", "i1", "u1", "i8")}
    arrays |= {"columns first": np.asfortranarray(arrays["a.f4"]), "long": np.arange(300), "none": np.zeros((0, 3))}
    content = {"model": arrays, "__author__": "nobody", "step": 3}
    (tmp_path / "a.pkl").write_bytes(change(pickle.dumps(content, protocol=protocol)))
    file = open_tensors(tmp_path / "a.pkl")
    assert file.shapes == {name: x.shape for name, x in arrays.items()}
    for name, x in arrays.items():
        assert file.read(name).dtype == x.dtype
        np.testing.assert_array_equal(file.read(name), x)


class Lie:
    """An array with a state of its own."""

    def __init__(self, shape=(4,), dtype="f4", column_major=False, content=bytes(16)):
        self.state = (1, shape, np.dtype(dtype), column_major, content)

    def __reduce__(self):
        return np.zeros(0).__reduce__()[0], (np.ndarray, (0,), b"b"), self.state


@pytest.mark.parametrize(
    ("x", "match"),
    [
        (Lie(shape=(5,)), "as many numbers as its shape"),
        (Lie(shape=(2**40, 0)), "as many numbers as its shape"),
        (Lie(shape=(-4,)), "at least 0"),
        (Lie(shape=(1,) * 9), "expected a list"),
        (Lie(shape="abcd"), "expected a whole number"),
        (Lie(dtype=">f4"), "expected one of the dtypes"),
        (Lie(dtype="O", content=[1, 2]), "expected one of the dtypes"),
        (Lie(dtype="U1"), "expected one of the dtypes"),
        (Lie(content=bytes(15)), "was refused"),
        (Lie(content=7), "was refused"),
        (Lie(content="\u0416" * 16), "was refused"),
        (Malicious((os.system, ("touch hacked",))), "asks for (posix|nt).system"),
        (Malicious((eval, ("1",))), "asks for builtins.eval"),
        (Malicious((np.load, ("a",))), "asks for numpy"),
    ],
)
def test_pickles_of_arrays_that_lie_are_refused(tmp_path, monkeypatch, x, match):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": {"a": x}}, protocol=4))
    with pytest.raises(InputError, match=match):
        open_tensors(tmp_path / "a.pkl")
    assert not (tmp_path / "hacked").exists()


def test_pickles_that_are_cut_or_other_files_are_refused(tmp_path):
    whole = pickle.dumps({"model": {"a": np.arange(99)}}, protocol=4)
    zipped = tmp_path / "b.pkl"
    _archive(zipped, _tensor())
    for broken in (whole[: len(whole) // 2], whole[:3], b"", b"hello, this is no pickle", zipped.read_bytes()):
        (tmp_path / "a.pkl").write_bytes(broken)
        with pytest.raises(InputError, match="a.pkl was refused"):
            open_tensors(tmp_path / "a.pkl")


def test_state_dicts_of_detectron2(tmp_path):
    """They lie under the key "model"; what else a training saves is left out."""
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        program = b"\x80\x02}(X\x05\x00\x00\x00model}X\x01\x00\x00\x00a" + _tensor() + b"sX\x04\x00\x00\x00stepK\x01u."
        archive.writestr("x/data.pkl", program)
        archive.writestr("x/data/0", b"\0" * 16)
    assert open_tensors(tmp_path / "x.pth").shapes == {"a": (4,)}


def _archive(path, tensor_program, storage=b"\0" * 16, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x/data.pkl", b"\x80\x02}X\x01\x00\x00\x00a" + tensor_program + b"s.")
        archive.writestr("x/data/0", storage)


def _tensor(size=4, offset=0, shape=(4,), stride=(1,)):
    """The opcodes of a float32 tensor in record 0; see pickletools."""
    storage = b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
    arguments = storage + _integer(size) + b"tQ" + _integer(offset) + _tuple(shape) + _tuple(stride) + b"\x89}t"
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"


def _integer(value):
    return b"J" + np.int32(value).tobytes()


def _tuple(values):
    return b"(" + b"".join(map(_integer, values)) + b"t"


def test_archives_that_lie_are_refused(tmp_path):
    path = tmp_path / "x.ckpt"
    _archive(path, _tensor(), np.arange(4, dtype=np.float32).tobytes())
    np.testing.assert_array_equal(open_tensors(path).read("a"), [0, 1, 2, 3])
    for lie in ({"shape": (5,)}, {"offset": 1}, {"offset": -1}, {"stride": (2,)}, {"stride": (-1,)}, {"size": 400}):
        _archive(path, _tensor(**lie))
        with pytest.raises(InputError, match="reaches outside its storage|has not the size it claims"):
            open_tensors(path).read("a")
    _archive(path, _tensor(), b"\0" * 16, zipfile.ZIP_DEFLATED)  # could be a bomb
    with pytest.raises(InputError, match="is compressed or encrypted"):
        open_tensors(path)


def test_views(tmp_path):
    """A transposed view with an offset, as torch saves it: storage of 8, offset 1, shape 2x3, strides 1 and 2."""
    _archive(tmp_path / "x.pt", _tensor(8, 1, (2, 3), (1, 2)), np.arange(8, dtype=np.float32).tobytes())
    np.testing.assert_array_equal(open_tensors(tmp_path / "x.pt").read("a"), [[1, 3, 5], [2, 4, 6]])


@pytest.mark.parametrize("name", ["x.safetensors", "x.ckpt"])
def test_truncated_and_foreign_files(tmp_path, tensors, name):
    path = tmp_path / name
    write_safetensors(path, tensors) if name.endswith("safetensors") else write_torch_archive(path, tensors.items())
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:5], b"", b"hello, this is no tensor file"):
        path.write_bytes(broken)
        with pytest.raises(InputError, match="is not a whole"):
            open_tensors(path)


def test_other_contents_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.ckpt", "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps([1, 2], protocol=2))
    with pytest.raises(InputError, match="expected a dict of tensors, found list"):
        open_tensors(tmp_path / "x.ckpt")
    with zipfile.ZipFile(tmp_path / "y.ckpt", "w") as archive:
        archive.writestr("y/data.pkl", pickle.dumps(collections.OrderedDict(a=1), protocol=2))
    assert open_tensors(tmp_path / "y.ckpt").shapes == {}


# -- Files of torch.save before PyTorch 1.6


class FloatStorage:
    """Stands for torch's class of that name when a file is written."""


def _rebuild_tensor_v2(*_):
    """Likewise."""


class Saved:
    """A tensor that the pickler writes as torch's do."""

    def __init__(self, x, record, size=None, view=None):
        self.storage, self.shape = (x, record, x.size if size is None else size, view), x.shape
        self.strides = [n // x.itemsize for n in x.strides]

    def __reduce__(self):
        storage = Storage(self.storage)
        return _rebuild_tensor_v2, (storage, 0, self.shape, tuple(self.strides), False, collections.OrderedDict())


class Storage(tuple):
    def __new__(cls, values):
        return super().__new__(cls, values)


class OldPickler(pickle.Pickler):
    def persistent_id(self, x):
        if isinstance(x, Storage):
            _, record, size, view = x
            return ("storage", FloatStorage, record, "cpu", size, view)
        return None


@pytest.fixture(params=["torch", "torch.cuda"])
def write_old(request, monkeypatch):
    """A function that writes what torch.save did on a CPU or on a card: a file of five pickles and the storages."""
    names = ("torch", "torch.cuda", "torch._utils")
    torch, cuda, utils = (types.ModuleType(name) for name in names)
    torch.FloatStorage = cuda.FloatStorage = FloatStorage
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    for name, module in zip(names, (torch, cuda, utils), strict=True):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(FloatStorage, "__module__", request.param)
    monkeypatch.setattr(_rebuild_tensor_v2, "__module__", "torch._utils")

    def write(path, content, arrays, version=1001, counts=None, little=True):
        file = io.BytesIO()
        for x in (0x1950A86A20F9469CFC6C, version, {"protocol_version": 1001, "little_endian": little}):
            pickle.dump(x, file, protocol=2)
        OldPickler(file, protocol=2).dump(content)
        pickle.dump(list(arrays), file, protocol=2)
        for record, x in arrays.items():
            file.write(struct.pack("<q", (counts or {}).get(record, x.size)) + x.tobytes())
        path.write_bytes(file.getvalue())
        return path

    return write


def test_files_of_older_torch_are_read(tmp_path, rng, write_old):
    arrays = {"11": rng.normal(0, 1, (3, 4)).astype(np.float32), "2": np.float32([2.5])}
    other = rng.normal(0, 1, 6).astype(np.float32)  # of an optimiser: no tensor of the network
    state = {"a.weight": Saved(arrays["11"], "11"), "a.bias": Saved(arrays["2"], "2")}
    content = {"epoch": 3, "state_dict": state, "optimizer": {"x": Saved(other, "7")}}
    file = open_tensors(write_old(tmp_path / "x.pth", content, {"7": other, **arrays}))
    assert file.shapes == {"a.weight": (3, 4), "a.bias": (1,)}
    np.testing.assert_array_equal(file.read("a.weight"), arrays["11"])
    np.testing.assert_array_equal(file.read("a.bias"), arrays["2"])


def test_files_of_older_torch_that_lie_are_refused(tmp_path, monkeypatch, write_old):
    monkeypatch.chdir(tmp_path)
    x, path = np.ones(4, np.float32), tmp_path / "x.pth"
    for content, options, match in (
        ({"x": Saved(x, "1", size=2)}, {"counts": {"1": 2}}, "reaches outside its storage"),
        ({"x": Saved(x, "1")}, {"counts": {"1": 2**40}}, "storage 1 has not the size"),
        ({"x": Saved(x, "1", size=2**40)}, {"counts": {"1": 2**40}}, "ends within its storages"),
        ({"x": Saved(x, "1", view=("2", 0, 4))}, {}, "is two storages"),
        ({"x": Saved(x, "1"), "y": Saved(x[:2], "1")}, {}, "is two storages"),
        ({"x": Saved(x, "3")}, {}, "storage 1 has not the size"),
        ({"x": Saved(x, "1"), "y": Saved(x, "2")}, {}, "lacks storages"),
        ({"x": Saved(x, "1")}, {"version": 1002}, "version that is not known"),
        ({"x": Saved(x, "1")}, {"little": False}, "big-endian"),
        ({"x": Malicious((os.system, ("touch hacked",)))}, {}, "asks for posix.system"),
        ([Saved(x, "1")], {}, "expected a dict of tensors, found list"),
    ):
        with pytest.raises(InputError, match=match):
            open_tensors(write_old(path, content, {"1": x}, **options))
    assert not (tmp_path / "hacked").exists()


def test_files_of_older_torch_that_are_cut_are_refused(tmp_path, write_old):
    x = np.ones(40, np.float32)
    content = write_old(tmp_path / "x.pth", {"x": Saved(x, "1")}, {"1": x}).read_bytes()
    for length in range(len(content)):
        (tmp_path / "y.pth").write_bytes(content[:length])
        with pytest.raises(InputError):
            open_tensors(tmp_path / "y.pth")
