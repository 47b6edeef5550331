"""Published weights of DensePose R-CNN, such as `model_final_162be9.pkl`, read strictly.

Every tensor of the file is used exactly once, and every parameter is filled. Depth and widths are those of the tensors.
Our modules carry the published names: the path of a leaf, joined by dots, is the published name, but for its last part.
"""

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from mafx.commands import expand_home
from mafx.densepose.heads import CONVOLUTIONS
from mafx.densepose.proposals import ANCHOR_SIDES, cell_anchors
from mafx.densepose.rcnn import PIXEL_MEAN, STRIDE, DensePoseRCNN, RCNNConfig, prepare
from mafx.densepose.resnet import STAGES
from mafx.errors import InputError
from mafx.files import check_finite
from mafx.model import network_dtype
from mafx.placing import host_array
from mafx.pretrained.formats import open_tensors
from mafx.pretrained.tensors import TensorFile

LeafPath = tuple[str, ...]
Shape = tuple[int, ...]

FROZEN = "backbone.bottom_up."  # convolutions with frozen batch norms
NORM_EPS = 1e-5
NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")

# What some files have beside the weights: constants of the code, which must be the same here.
CONSTANTS: dict[str, np.ndarray] = {
    "pixel_mean": np.array(PIXEL_MEAN, np.float32).reshape(3, 1, 1),
    "pixel_std": np.ones((3, 1, 1), np.float32),
} | {f"proposal_generator.anchor_generator.cell_anchors.{i}": cell_anchors(i) for i in range(len(ANCHOR_SIDES))}
CONSTANT_TOLERANCE = 1e-4  # relative

# Axes of published kernels: `o` outputs, `i` inputs, `h w` taps. Axes in one group are one axis of the tensor.
CONV = ("o", "i", "h", "w")
TRANSPOSED_CONV = ("i", "o", "h", "w")
DENSE = ("o", "i")
FIRST_DENSE = ("o", "ihw")  # over the flattened features of a box


class RCNN(NamedTuple):
    """A network with its parameters."""

    config: RCNNConfig
    params: dict

    @property
    def network(self) -> DensePoseRCNN:
        return DensePoseRCNN(self.config)


def load_rcnn(path: str | Path, dtype: jnp.dtype | str = jnp.float32) -> RCNN:
    """Read a published file.

    Args:
      path: A `.pkl` of the model zoo, or a `.pth` of a training; `~` is the home folder.
      dtype: Of the parameters, in which the network will compute.

    Raises:
      InputError: The file is not one of this network; the message lists all tensors that are missing, unexpected or of
        another shape. Or it could execute code, or holds values that are not finite.
    """
    dtype = network_dtype(dtype)
    file = open_tensors(expand_home(Path(path)))
    config = find_config(file.shapes, str(path))
    leaves = parameter_shapes(config)
    _match(file, {name: shape for path, leaf in leaves.items() for name, shape in sources(path, leaf.shape).items()})
    flat = {path: host_array(_read_leaf(file, path, leaf.shape), dtype) for path, leaf in leaves.items()}
    return RCNN(config, flax.traverse_util.unflatten_dict(flat))


def find_config(shapes: Mapping[str, Shape], where: str) -> RCNNConfig:
    """Depth and widths of a network, from the names and shapes of its tensors.

    Args:
      shapes: Of all tensors.
      where: The file, for messages.

    Raises:
      InputError: They are not those of this network.
    """

    def width(name: str, axis: int = 0) -> int:
        shape = shapes.get(name, ())
        if len(shape) <= axis or 0 in shape:
            found = f"{shape} there" if name in shapes else "none"
            raise InputError(f"{where}: expected the weights of a DensePose R-CNN with a {name}, found {found}")
        return shape[axis]

    def count(stage: int) -> int:
        return sum(f"{FROZEN}res{stage}.{i}.conv1.weight" in shapes for i in range(len(shapes)))

    heads, decoder = "roi_heads.densepose_head.", "roi_heads.decoder."
    has_decoder = any(name.startswith(decoder) for name in shapes)
    return RCNNConfig(
        blocks=tuple(count(stage) for stage in STAGES),
        stem=width(f"{FROZEN}stem.conv1.weight"),
        inner=width(f"{FROZEN}res2.0.conv1.weight"),
        outer=width(f"{FROZEN}res2.0.conv3.weight"),
        pyramid=width("backbone.fpn_lateral2.weight"),
        dense=width("roi_heads.box_head.fc1.weight"),
        decoder=(width(f"{decoder}p2.0.weight"), width(f"{decoder}predictor.weight")) if has_decoder else None,
        head=width(f"{heads}body_conv_fcn{CONVOLUTIONS}.weight"),
        deeplab=any(name.startswith(f"{heads}ASPP.") for name in shapes),
        coarse=width("roi_heads.densepose_predictor.ann_index_lowres.weight", 1),
    )


@functools.cache
def parameter_shapes(config: RCNNConfig) -> dict[LeafPath, jax.ShapeDtypeStruct]:
    """The leaves of the parameter tree by their paths. Nothing is allocated."""
    network, size = DensePoseRCNN(config), (STRIDE, STRIDE)
    pictures = jax.ShapeDtypeStruct((1, *size, 3), jnp.uint8)

    def init(key: jax.Array, pictures: jax.Array) -> dict:
        return network.init(key, prepare(pictures, jnp.dtype(jnp.float32)), size, 1)["params"]

    return flax.traverse_util.flatten_dict(jax.eval_shape(init, jax.random.key(0), pictures))


def sources(path: LeafPath, shape: Shape) -> dict[str, Shape]:
    """Names and shapes of the published tensors that a leaf of some shape is made of.

    The tensors of a frozen batch norm belong to the bias of its convolution here; the kernel is multiplied with some of
    them too.
    """
    name = ".".join(path[:-1])
    if path[-1] != "kernel":
        norm = {f"{name}.norm.{tensor}": shape for tensor in NORM_TENSORS}
        own = f"{name}.{'bias' if path[-1] == 'bias' else 'weight'}"
        return norm if name.startswith(FROZEN) else {own: shape}
    axes = kernel_axes(name)
    sides = dict(zip("io" if axes == DENSE else "hwio", shape, strict=True))
    return {f"{name}.weight": tuple(math.prod(sides[axis] for axis in group) for group in axes)}


def kernel_axes(name: str) -> tuple[str, ...]:
    """The axes of a layer's published kernel."""
    layer = name.removeprefix("roi_heads.")
    if layer == "box_head.fc1":
        return FIRST_DENSE
    if layer.startswith("densepose_predictor."):
        return TRANSPOSED_CONV
    return DENSE if layer.startswith(("box_head.", "box_predictor.")) else CONV


def _match(file: TensorFile, expected: Mapping[str, Shape]) -> None:
    """Check that a file has the expected tensors, and beside them constants of the code at most."""
    problems = []
    for name in expected.keys() - file.shapes.keys():
        problems.append(f"{name} {expected[name]} is missing")
    for name, shape in file.shapes.items():
        if name in CONSTANTS:
            same_shape = shape == CONSTANTS[name].shape
            if not (same_shape and np.allclose(file.read(name), CONSTANTS[name], CONSTANT_TOLERANCE, 0)):
                problems.append(f"{name} has other values than those of the published networks")
        elif name not in expected:
            problems.append(f"{name} {shape} is not a tensor of this network")
        elif shape != expected[name]:
            problems.append(f"{name} has shape {shape}, expected {expected[name]}")
    if problems:
        raise InputError("\n  ".join([f"{file.path} does not fit a DensePose R-CNN:", *sorted(problems)]))


def _read_leaf(file: TensorFile, path: LeafPath, shape: Shape) -> np.ndarray:
    """One leaf in our layout, float32. Frozen batch norms are multiplied into kernels, and are biases beside them."""

    def read(name: str) -> np.ndarray:
        return check_finite(file.read(name), f"{file.path}: {name}").astype(np.float64)

    name = ".".join(path[:-1])
    scale = None
    if name.startswith(FROZEN):
        weight, bias, mean, variance = (read(f"{name}.norm.{tensor}") for tensor in NORM_TENSORS)
        scale = weight / np.sqrt(variance + NORM_EPS)
        if path[-1] == "bias":
            return (bias - mean * scale).astype(np.float32)
    if path[-1] != "kernel":
        (tensor,) = sources(path, shape)
        return read(tensor).astype(np.float32)
    axes = kernel_axes(name)
    pattern = " ".join(f"({' '.join(group)})" for group in axes)
    sides = dict(zip("io" if axes == DENSE else "hwio", shape, strict=True))
    kernel = rearrange(read(f"{name}.weight"), f"{pattern} -> {' '.join(sides)}", **sides)
    return (kernel if scale is None else kernel * scale).astype(np.float32)
