"""The networks behind LPIPS, FID, FID-VID and FVD, as functions of their published tensors.

`w` holds those by their published names, in PyTorch's layout (out, in, kernel); pictures are float32 `b h w c`, videos `b f h w c`. One set of
functions serves both: a convolution has as many axes as its kernel.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jax import lax

Tensors = Mapping[str, jax.Array]
Sizes = int | Sequence[int]
LAYOUTS = {2: ("NHWC", "OIHW", "NHWC"), 3: ("NDHWC", "OIDHW", "NDHWC")}


def conv(w: Tensors, name: str, x: jax.Array, stride: Sizes = 1, padding: Sizes | str = 0) -> jax.Array:
    """A convolution, with its bias where it has one."""
    kernel = w[f"{name}.weight"]
    axes = kernel.ndim - 2
    if not isinstance(padding, str):
        padding = [(p, p) for p in _each(padding, axes)]
    x = lax.conv_general_dilated(
        x, kernel, _each(stride, axes), padding, dimension_numbers=LAYOUTS[axes], precision="highest"
    )
    return x + w[f"{name}.bias"].reshape((1,) * (axes + 1) + (-1,)) if f"{name}.bias" in w else x


def norm(w: Tensors, name: str, x: jax.Array, eps: float) -> jax.Array:
    """Batch normalisation by the statistics of training."""
    scale = w[f"{name}.weight"] / jnp.sqrt(w[f"{name}.running_var"] + eps)
    shift = w[f"{name}.bias"] - w[f"{name}.running_mean"] * scale
    shape = (1,) * (x.ndim - 1) + (-1,)
    return x * scale.reshape(shape) + shift.reshape(shape)


def max_pool(x: jax.Array, size: Sizes, stride: Sizes, padding: Sizes | str = 0) -> jax.Array:
    axes = x.ndim - 2
    if not isinstance(padding, str):
        padding = [(0, 0), *((p, p) for p in _each(padding, axes)), (0, 0)]
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, *_each(size, axes), 1), (1, *_each(stride, axes), 1), padding)


def mean_pool3x3(x: jax.Array) -> jax.Array:
    """The mean of each place and its neighbours; those outside the picture do not count."""
    total = lambda y: lax.reduce_window(y, 0.0, lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")  # noqa: E731
    return total(x) / total(jnp.ones((1, *x.shape[1:3], 1)))


def _each(value: Sizes, axes: int) -> tuple[int, ...]:
    return (value,) * axes if isinstance(value, int) else tuple(value)


# -- LPIPS (*The Unreasonable Effectiveness of Deep Features as a Perceptual Metric*, arXiv 1801.03924): torchvision's VGG-16, weights v0.1 of `lpips`

VGG_STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))


def lpips(w: Tensors, a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Perceptual distance of pictures in [-1, 1]: LPIPS, float32 `b`, and a map of it, `b h w` (`spatial=True` of the library)."""
    shift, scale = (
        jnp.array(x, jnp.float32).reshape(1, 1, 1, 3) for x in ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450))
    )
    x, layers = (jnp.concatenate([a, b]) - shift) / scale, []
    for i, stage in enumerate(VGG_STAGES):
        x = x if i == 0 else max_pool(x, 2, 2)
        for layer in stage:
            x = jax.nn.relu(conv(w, f"features.{layer}", x, padding=1))
        unit = x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-10)
        layers.append(conv(w, f"lin{i}.model.1", jnp.square(unit[: len(a)] - unit[len(a) :]))[..., 0])
    return sum(layer.mean((1, 2)) for layer in layers), sum(
        jax.image.resize(layer, a.shape[:3], "bilinear") for layer in layers
    )


# -- FID (*GANs Trained by a Two Time-Scale Update Rule*, arXiv 1706.08500): Inception as TensorFlow had it in 2015, in the port of `pytorch-fid`


def inception(w: Tensors, x: jax.Array) -> jax.Array:
    """Pictures in [0, 1] of any size -> features `b 2048`, the last pooling."""

    def unit(x: jax.Array, name: str, stride: int = 1, padding: Sizes = 0) -> jax.Array:
        return jax.nn.relu(norm(w, f"{name}.bn", conv(w, f"{name}.conv", x, stride, padding), 1e-3))

    def chain(x: jax.Array, block: str, *layers: tuple[str, Sizes]) -> jax.Array:
        for name, padding in layers:
            x = unit(x, f"{block}.{name}", padding=padding)
        return x

    def block_a(x: jax.Array, name: str) -> jax.Array:
        return jnp.concatenate(
            [
                chain(x, name, ("branch1x1", 0)),
                chain(x, name, ("branch5x5_1", 0), ("branch5x5_2", 2)),
                chain(x, name, ("branch3x3dbl_1", 0), ("branch3x3dbl_2", 1), ("branch3x3dbl_3", 1)),
                chain(mean_pool3x3(x), name, ("branch_pool", 0)),
            ],
            -1,
        )

    def block_b(x: jax.Array, name: str) -> jax.Array:
        double = chain(x, name, ("branch3x3dbl_1", 0), ("branch3x3dbl_2", 1))
        return jnp.concatenate(
            [unit(x, f"{name}.branch3x3", 2), unit(double, f"{name}.branch3x3dbl_3", 2), max_pool(x, 3, 2)], -1
        )

    def block_c(x: jax.Array, name: str) -> jax.Array:
        wide, tall = (0, 3), (3, 0)
        double = [
            ("branch7x7dbl_1", 0),
            ("branch7x7dbl_2", tall),
            ("branch7x7dbl_3", wide),
            ("branch7x7dbl_4", tall),
            ("branch7x7dbl_5", wide),
        ]
        return jnp.concatenate(
            [
                chain(x, name, ("branch1x1", 0)),
                chain(x, name, ("branch7x7_1", 0), ("branch7x7_2", wide), ("branch7x7_3", tall)),
                chain(x, name, *double),
                chain(mean_pool3x3(x), name, ("branch_pool", 0)),
            ],
            -1,
        )

    def block_d(x: jax.Array, name: str) -> jax.Array:
        one = chain(x, name, ("branch3x3_1", 0))
        two = chain(x, name, ("branch7x7x3_1", 0), ("branch7x7x3_2", (0, 3)), ("branch7x7x3_3", (3, 0)))
        return jnp.concatenate(
            [unit(one, f"{name}.branch3x3_2", 2), unit(two, f"{name}.branch7x7x3_4", 2), max_pool(x, 3, 2)], -1
        )

    def block_e(x: jax.Array, name: str, pooled: jax.Array) -> jax.Array:
        def fork(y: jax.Array, stem: str) -> list[jax.Array]:
            return [chain(y, name, (f"{stem}a", (0, 1))), chain(y, name, (f"{stem}b", (1, 0)))]

        single = chain(x, name, ("branch3x3_1", 0))
        double = chain(x, name, ("branch3x3dbl_1", 0), ("branch3x3dbl_2", 1))
        ends = [*fork(single, "branch3x3_2"), *fork(double, "branch3x3dbl_3")]
        return jnp.concatenate([chain(x, name, ("branch1x1", 0)), *ends, chain(pooled, name, ("branch_pool", 0))], -1)

    b, _, _, c = x.shape
    x = 2 * jax.image.resize(x, (b, 299, 299, c), "bilinear", antialias=False) - 1
    x = unit(unit(unit(x, "Conv2d_1a_3x3", 2), "Conv2d_2a_3x3"), "Conv2d_2b_3x3", padding=1)
    x = unit(unit(max_pool(x, 3, 2), "Conv2d_3b_1x1"), "Conv2d_4a_3x3")
    x = max_pool(x, 3, 2)
    for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        x = block_a(x, name)
    x = block_b(x, "Mixed_6a")
    for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        x = block_c(x, name)
    x = block_d(x, "Mixed_7a")
    x = block_e(x, "Mixed_7b", mean_pool3x3(x))
    x = block_e(x, "Mixed_7c", max_pool(x, 3, 1, 1))
    return x.mean((1, 2))


# -- FID-VID (as DisCo measures it, its tool/metrics/resnet3d.py): a 3D ResNet-50 trained on Kinetics (arXiv 1711.09577)

RESNET_LAYERS = (3, 4, 6, 3)


def resnet3d(w: Tensors, x: jax.Array) -> jax.Array:
    """Videos `b 16 112 112 3`, of 255, less the mean colour of Kinetics -> features `b 2048`."""

    def unit(x: jax.Array, name: str, i: int, stride: Sizes = 1, padding: Sizes = 0) -> jax.Array:
        return norm(w, f"{name}bn{i}", conv(w, f"{name}conv{i}", x, stride, padding), 1e-5)

    x = max_pool(jax.nn.relu(unit(x, "", 1, (1, 2, 2), 3)), 3, 2, 1)
    for i, count in enumerate(RESNET_LAYERS):
        for j in range(count):
            name, stride = f"layer{i + 1}.{j}.", 2 if i and not j else 1
            y = jax.nn.relu(unit(x, name, 1))
            y = unit(jax.nn.relu(unit(y, name, 2, stride, 1)), name, 3)
            if not j:
                x = norm(w, f"{name}downsample.1", conv(w, f"{name}downsample.0", x, stride), 1e-5)
            x = jax.nn.relu(x + y)
    return x.mean((1, 2, 3))


# -- FVD (*Towards Accurate Generative Models of Video*, arXiv 1812.01717): I3D trained on Kinetics (arXiv 1705.07750), the port of `pytorch-i3d`


def i3d(w: Tensors, x: jax.Array) -> jax.Array:
    """Videos `b f 224 224 3` in [-1, 1], at least 9 frames -> logits `b 400`."""

    def unit(x: jax.Array, name: str, stride: int = 1) -> jax.Array:
        return jax.nn.relu(norm(w, f"{name}.bn", conv(w, f"{name}.conv3d", x, stride, "SAME"), 1e-3))

    def mixed(x: jax.Array, name: str) -> jax.Array:
        ends = unit(x, f"{name}.b0"), *(unit(unit(x, f"{name}.b{i}a"), f"{name}.b{i}b") for i in (1, 2))
        return jnp.concatenate([*ends, unit(max_pool(x, 3, 1, "SAME"), f"{name}.b3b")], -1)

    x = max_pool(unit(x, "Conv3d_1a_7x7", 2), (1, 3, 3), (1, 2, 2), "SAME")
    x = max_pool(unit(unit(x, "Conv3d_2b_1x1"), "Conv3d_2c_3x3"), (1, 3, 3), (1, 2, 2), "SAME")
    x = max_pool(mixed(mixed(x, "Mixed_3b"), "Mixed_3c"), 3, 2, "SAME")
    for letter in "bcdef":
        x = mixed(x, f"Mixed_4{letter}")
    x = max_pool(x, 2, 2, "SAME")
    x = mixed(mixed(x, "Mixed_5b"), "Mixed_5c")
    return conv(w, "logits.conv3d", x).mean((1, 2, 3))
