"""What the tests of DensePose R-CNN share: the published code's small models, and one of random numbers."""

import functools
import pickle
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SHARED
from PIL import Image
from safetensors.numpy import load_file

from mafx.densepose.rcnn import RCNNConfig
from mafx.densepose.rcnn_weights import load_rcnn, parameter_shapes, sources

FOLDER = SHARED / "fixtures" / "densepose"
SETS = {"tiny": (160, 256), "tiny_dl": (144, 240)}  # sides of resized pictures
SMALL = RCNNConfig(
    blocks=(1, 1, 1, 1), stem=4, inner=4, outer=8, pyramid=32, dense=8, decoder=(4, 32), head=32, deeplab=True
)


def shared_file(name):
    if not FOLDER.is_dir():
        pytest.skip("the published code's fixtures (../shared/fixtures/densepose) are not here")
    return FOLDER / name


@functools.cache
def operations():
    """Single operations of the published code."""
    return load_file(shared_file("ops.safetensors"))


@functools.cache
def load_set(name):
    """A model, and what the published code makes of some pictures with it."""
    folder = shared_file(name)
    expected = load_file(folder / "expected.safetensors")
    return types.SimpleNamespace(
        name=name,
        folder=folder,
        rcnn=load_rcnn(folder / "model_final.pkl"),
        expected=expected,
        pictures=sorted({key.split("/")[0] for key in expected}),
        sides=dict(zip(("min_size", "max_size"), SETS[name], strict=True)),
    )


def read_rgb(path):
    return np.array(Image.open(path).convert("RGB"))


def run(rcnn, method, *args):
    """A method of the network, compiled; it is a function of the bound module and the arguments."""
    return jax.jit(lambda params, *args: rcnn.network.apply({"params": params}, *args, method=method))(
        rcnn.params, *args
    )


def channels_last(x):
    """One array `c h w` of the published code as `1 h w c`."""
    return jnp.asarray(x.transpose(1, 2, 0)[None])


def channels_first(x):
    return np.asarray(x).transpose(0, 3, 1, 2)


def published_tensors(config=SMALL, seed=0):
    """Random tensors by their published names; variances are positive."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for path, leaf in parameter_shapes(config).items():
        for name, shape in sources(path, leaf.shape).items():
            x = rng.normal(size=shape) * (np.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.1)
            x += len(shape) == 1 and name.endswith(("weight", "var"))  # norms are near the identity
            tensors[name] = np.asarray(x, np.float32)
    return tensors


def write_pickle(path, tensors, **others):
    """Write a file as those of the model zoo are."""
    path.write_bytes(pickle.dumps({"model": tensors, "__author__": "nobody"} | others, protocol=4))
    return path
