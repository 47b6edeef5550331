"""The networks behind LPIPS, FID, FID-VID and FVD, as functions of their published tensors.

`w` holds the tensors by their published names, in PyTorch's layout (out, in, kernel). Pictures are float32 `b h w c`,
videos float32 `b f h w c`. The same functions serve both: a convolution has as many axes as its kernel.
"""

import functools
import operator
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jax import lax

Tensors = Mapping[str, jax.Array]
Sizes = int | Sequence[int]  # one number for all axes, or one per axis
LAYOUTS = {2: ("NHWC", "OIHW", "NHWC"), 3: ("NDHWC", "OIDHW", "NDHWC")}  # by the number of axes


# -- Layers


def conv(w: Tensors, name: str, x: jax.Array, stride: Sizes = 1, padding: Sizes | str = 0) -> jax.Array:
    """A convolution, and its bias if `w` has one.

    Args:
      w: All tensors of the network.
      name: Of the layer in `w`.
      x: `b ... c`.
      stride: In pixels.
      padding: Zeros on both sides, or "SAME" as TensorFlow defines it.
    """
    kernel = w[f"{name}.weight"]
    axes = kernel.ndim - 2
    pads = padding if isinstance(padding, str) else [(p, p) for p in _each(padding, axes)]
    layout = LAYOUTS[axes]
    x = lax.conv_general_dilated(x, kernel, _each(stride, axes), pads, dimension_numbers=layout, precision="highest")
    bias = w.get(f"{name}.bias")
    return x if bias is None else x + bias.reshape((1,) * (axes + 1) + (-1,))


def norm(w: Tensors, name: str, x: jax.Array, eps: float) -> jax.Array:
    """Batch normalisation with the mean and the variance that training has stored."""
    scale = w[f"{name}.weight"] / jnp.sqrt(w[f"{name}.running_var"] + eps)
    shift = w[f"{name}.bias"] - w[f"{name}.running_mean"] * scale
    shape = (1,) * (x.ndim - 1) + (-1,)
    return x * scale.reshape(shape) + shift.reshape(shape)


def max_pool(x: jax.Array, size: Sizes, stride: Sizes, padding: Sizes | str = 0) -> jax.Array:
    """The maximum over windows of `size`; `padding` as in `conv`."""
    axes = x.ndim - 2
    pads = padding if isinstance(padding, str) else [(0, 0), *((p, p) for p in _each(padding, axes)), (0, 0)]
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, *_each(size, axes), 1), (1, *_each(stride, axes), 1), pads)


def mean_pool3x3(x: jax.Array) -> jax.Array:
    """The mean of each pixel and its neighbours, `b h w c`. Neighbours outside the picture do not count."""
    return _sum3x3(x) / _sum3x3(jnp.ones((1, *x.shape[1:3], 1)))


def _sum3x3(x: jax.Array) -> jax.Array:
    return lax.reduce_window(x, 0.0, lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")


def _each(value: Sizes, axes: int) -> tuple[int, ...]:
    return (value,) * axes if isinstance(value, int) else tuple(value)


# -- LPIPS (*The Unreasonable Effectiveness of Deep Features as a Perceptual Metric*, arXiv 1801.03924)
# torchvision's VGG-16, weights v0.1 of the package `lpips`

VGG_STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))  # numbers of convolutions, between poolings
VGG_MEAN = (-0.030, -0.088, -0.188)  # of pictures in [-1, 1]
VGG_DEVIATION = (0.458, 0.448, 0.450)


def lpips(w: Tensors, a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Perceptual distance between pictures.

    Args:
      w: VGG-16, and the weights of its stages.
      a: `b h w 3` in [-1, 1].
      b: The same.

    Returns:
      LPIPS `b`, and a map of it `b h w` (what the package gives with `spatial=True`).
    """
    mean, deviation = (jnp.array(x, jnp.float32).reshape(1, 1, 1, 3) for x in (VGG_MEAN, VGG_DEVIATION))
    x = (jnp.concatenate([a, b]) - mean) / deviation
    maps = []
    for i, stage in enumerate(VGG_STAGES):
        x = x if i == 0 else max_pool(x, 2, 2)
        for layer in stage:
            x = jax.nn.relu(conv(w, f"features.{layer}", x, padding=1))
        unit = x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-10)
        maps.append(conv(w, f"lin{i}.model.1", jnp.square(unit[: len(a)] - unit[len(a) :]))[..., 0])
    means = (x.mean((1, 2)) for x in maps)
    resized = (jax.image.resize(x, a.shape[:3], "bilinear") for x in maps)
    return functools.reduce(operator.add, means), functools.reduce(operator.add, resized)


# -- FID (*GANs Trained by a Two Time-Scale Update Rule*, arXiv 1706.08500)
# TensorFlow's Inception of 2015 as the package `pytorch-fid` ports it

WIDE, TALL = (0, 3), (3, 0)  # paddings of kernels of 1x7 and 7x1


def inception(w: Tensors, x: jax.Array) -> jax.Array:
    """Features of the last pooling.

    Args:
      w: The tensors.
      x: `b h w 3` in [0, 1], of any size.

    Returns:
      `b 2048`.
    """
    b, _, _, c = x.shape
    x = 2 * jax.image.resize(x, (b, 299, 299, c), "bilinear", antialias=False) - 1
    x = _unit(w, x, "Conv2d_1a_3x3", stride=2)
    x = _unit(w, x, "Conv2d_2a_3x3")
    x = _unit(w, x, "Conv2d_2b_3x3", padding=1)
    x = max_pool(x, 3, 2)
    x = _unit(w, x, "Conv2d_3b_1x1")
    x = _unit(w, x, "Conv2d_4a_3x3")
    x = max_pool(x, 3, 2)
    for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        x = _inception_a(w, x, name)
    x = _inception_b(w, x, "Mixed_6a")
    for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        x = _inception_c(w, x, name)
    x = _inception_d(w, x, "Mixed_7a")
    x = _inception_e(w, x, "Mixed_7b", pooled=mean_pool3x3(x))
    x = _inception_e(w, x, "Mixed_7c", pooled=max_pool(x, 3, 1, 1))
    return x.mean((1, 2))


def _unit(w: Tensors, x: jax.Array, name: str, stride: int = 1, padding: Sizes = 0) -> jax.Array:
    """Convolution, norm and ReLU."""
    return jax.nn.relu(norm(w, f"{name}.bn", conv(w, f"{name}.conv", x, stride, padding), 1e-3))


def _chain(w: Tensors, x: jax.Array, block: str, *layers: tuple[str, Sizes]) -> jax.Array:
    """Units one after another, given by their names within the block and their paddings."""
    for name, padding in layers:
        x = _unit(w, x, f"{block}.{name}", padding=padding)
    return x


def _inception_a(w: Tensors, x: jax.Array, block: str) -> jax.Array:
    ends = [
        _chain(w, x, block, ("branch1x1", 0)),
        _chain(w, x, block, ("branch5x5_1", 0), ("branch5x5_2", 2)),
        _chain(w, x, block, ("branch3x3dbl_1", 0), ("branch3x3dbl_2", 1), ("branch3x3dbl_3", 1)),
        _chain(w, mean_pool3x3(x), block, ("branch_pool", 0)),
    ]
    return jnp.concatenate(ends, -1)


def _inception_b(w: Tensors, x: jax.Array, block: str) -> jax.Array:
    double = _chain(w, x, block, ("branch3x3dbl_1", 0), ("branch3x3dbl_2", 1))
    ends = [
        _unit(w, x, f"{block}.branch3x3", stride=2),
        _unit(w, double, f"{block}.branch3x3dbl_3", stride=2),
        max_pool(x, 3, 2),
    ]
    return jnp.concatenate(ends, -1)


def _inception_c(w: Tensors, x: jax.Array, block: str) -> jax.Array:
    double: list[tuple[str, Sizes]] = [
        ("branch7x7dbl_1", 0),
        ("branch7x7dbl_2", TALL),
        ("branch7x7dbl_3", WIDE),
        ("branch7x7dbl_4", TALL),
        ("branch7x7dbl_5", WIDE),
    ]
    ends = [
        _chain(w, x, block, ("branch1x1", 0)),
        _chain(w, x, block, ("branch7x7_1", 0), ("branch7x7_2", WIDE), ("branch7x7_3", TALL)),
        _chain(w, x, block, *double),
        _chain(w, mean_pool3x3(x), block, ("branch_pool", 0)),
    ]
    return jnp.concatenate(ends, -1)


def _inception_d(w: Tensors, x: jax.Array, block: str) -> jax.Array:
    small = _chain(w, x, block, ("branch3x3_1", 0))
    large = _chain(w, x, block, ("branch7x7x3_1", 0), ("branch7x7x3_2", WIDE), ("branch7x7x3_3", TALL))
    ends = [
        _unit(w, small, f"{block}.branch3x3_2", stride=2),
        _unit(w, large, f"{block}.branch7x7x3_4", stride=2),
        max_pool(x, 3, 2),
    ]
    return jnp.concatenate(ends, -1)


def _inception_e(w: Tensors, x: jax.Array, block: str, pooled: jax.Array) -> jax.Array:
    single = _chain(w, x, block, ("branch3x3_1", 0))
    double = _chain(w, x, block, ("branch3x3dbl_1", 0), ("branch3x3dbl_2", 1))
    ends = [
        _chain(w, x, block, ("branch1x1", 0)),
        _chain(w, single, block, ("branch3x3_2a", (0, 1))),
        _chain(w, single, block, ("branch3x3_2b", (1, 0))),
        _chain(w, double, block, ("branch3x3dbl_3a", (0, 1))),
        _chain(w, double, block, ("branch3x3dbl_3b", (1, 0))),
        _chain(w, pooled, block, ("branch_pool", 0)),
    ]
    return jnp.concatenate(ends, -1)


# -- FID-VID (as DisCo measures it, its tool/metrics/resnet3d.py)
# a 3D ResNet-50 trained on Kinetics (arXiv 1711.09577)

RESNET_LAYERS = (3, 4, 6, 3)  # numbers of blocks


def resnet3d(w: Tensors, x: jax.Array) -> jax.Array:
    """Features of the last pooling.

    Args:
      w: The tensors.
      x: Videos `b 16 112 112 3` in [0, 255], less the mean colour of Kinetics.

    Returns:
      `b 2048`.
    """
    x = max_pool(jax.nn.relu(_resnet_unit(w, x, "", 1, (1, 2, 2), 3)), 3, 2, 1)
    for i, count in enumerate(RESNET_LAYERS):
        for j in range(count):
            name = f"layer{i + 1}.{j}."
            stride = 2 if i > 0 and j == 0 else 1
            y = jax.nn.relu(_resnet_unit(w, x, name, 1))
            y = jax.nn.relu(_resnet_unit(w, y, name, 2, stride, 1))
            y = _resnet_unit(w, y, name, 3)
            if j == 0:
                x = norm(w, f"{name}downsample.1", conv(w, f"{name}downsample.0", x, stride), 1e-5)
            x = jax.nn.relu(x + y)
    return x.mean((1, 2, 3))


def _resnet_unit(w: Tensors, x: jax.Array, name: str, i: int, stride: Sizes = 1, padding: Sizes = 0) -> jax.Array:
    """Convolution number `i` of a block, and its norm."""
    return norm(w, f"{name}bn{i}", conv(w, f"{name}conv{i}", x, stride, padding), 1e-5)


# -- FVD (*Towards Accurate Generative Models of Video*, arXiv 1812.01717)
# I3D trained on Kinetics (arXiv 1705.07750) as the package `pytorch-i3d` ports it


def i3d(w: Tensors, x: jax.Array) -> jax.Array:
    """Logits of the classes of Kinetics.

    Args:
      w: The tensors.
      x: Videos `b f 224 224 3` in [-1, 1], at least 9 frames.

    Returns:
      `b 400`.
    """
    x = max_pool(_i3d_unit(w, x, "Conv3d_1a_7x7", 2), (1, 3, 3), (1, 2, 2), "SAME")
    x = _i3d_unit(w, _i3d_unit(w, x, "Conv3d_2b_1x1"), "Conv3d_2c_3x3")
    x = max_pool(x, (1, 3, 3), (1, 2, 2), "SAME")
    for name in ("Mixed_3b", "Mixed_3c"):
        x = _i3d_mixed(w, x, name)
    x = max_pool(x, 3, 2, "SAME")
    for name in ("Mixed_4b", "Mixed_4c", "Mixed_4d", "Mixed_4e", "Mixed_4f"):
        x = _i3d_mixed(w, x, name)
    x = max_pool(x, 2, 2, "SAME")
    for name in ("Mixed_5b", "Mixed_5c"):
        x = _i3d_mixed(w, x, name)
    return conv(w, "logits.conv3d", x).mean((1, 2, 3))


def _i3d_unit(w: Tensors, x: jax.Array, name: str, stride: int = 1) -> jax.Array:
    """Convolution, norm and ReLU."""
    return jax.nn.relu(norm(w, f"{name}.bn", conv(w, f"{name}.conv3d", x, stride, "SAME"), 1e-3))


def _i3d_mixed(w: Tensors, x: jax.Array, block: str) -> jax.Array:
    ends = [
        _i3d_unit(w, x, f"{block}.b0"),
        _i3d_unit(w, _i3d_unit(w, x, f"{block}.b1a"), f"{block}.b1b"),
        _i3d_unit(w, _i3d_unit(w, x, f"{block}.b2a"), f"{block}.b2b"),
        _i3d_unit(w, max_pool(x, 3, 1, "SAME"), f"{block}.b3b"),
    ]
    return jnp.concatenate(ends, -1)
