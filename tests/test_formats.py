import collections
import os
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest

from mafx.errors import InputError
from mafx.pretrained.formats import open_tensors, write_safetensors, write_torch_archive

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
