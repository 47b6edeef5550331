"""What a run starts from, each part created where it will live: no device ever holds the whole."""

import functools
import logging
import math
import re
import shutil
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax.sharding import Mesh

from mafx.errors import InputError
from mafx.models.animator import AnimatorConfig, parameter_shapes
from mafx.models.temporal import frame_sinusoid
from mafx.models.text import Tokenizer
from mafx.pretrained.layout import load_stable_diffusion
from mafx.training.checkpoints import Checkpoints, read_parameters
from mafx.training.sharding import distribute_parameters, parameter_sharding
from mafx.training.step import Flat, TrainState, flatten, init_state, unflatten

log = logging.getLogger("mafx")
VOCABULARY = ("vocab.json", "merges.txt")


def start(
    config: ml_collections.ConfigDict,
    sizes: AnimatorConfig,
    mesh: Mesh,
    optimiser: optax.GradientTransformation,
    workdir: Path,
    saved: Checkpoints,
) -> tuple[TrainState, int]:
    """The state, and how many examples it has seen.

    In this order: the newest checkpoint of the work folder; the parameters of `config.init_from`, which is another work folder, or a folder with
    Stable Diffusion 1.5; copies of the UNet's where the appearance encoder and the ControlNet have such (*MagicAnimate*, section 3; *ControlNet*,
    section 3); random values.
    """
    begin = functools.partial(init_state, rules=config.train_only, optimiser=optimiser, dtype=jnp.dtype(config.dtype))
    shapes = jax.eval_shape(begin, parameter_shapes(sizes))
    sharding = parameter_sharding(mesh, shapes)
    if saved.latest is not None:
        abstract = jax.tree.map(
            lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, sharding
        )
        state, position = saved.restore(abstract)
        log.info("Going on from step %d of %s.", state.step, workdir)
        return state, position["examples"]
    params = _given(config, sizes, mesh, workdir)
    names = flatten(parameter_shapes(sizes))
    twins = {name: twin for name in names if name not in params and (twin := _twin(name, names))}
    missing = {name: x for name, x in names.items() if name not in params and name not in twins}
    if missing:
        log.info("%d of %d tensors start anew, %d as copies of the UNet's.", len(missing), len(names), len(twins))
        where = parameter_sharding(mesh, missing)
        for name, x in missing.items():  # one after the other: the host never holds more than one
            params |= distribute_parameters({name: where[name]}, {name: initial_value(name, x.shape, config.seed)})
    params |= {name: params[twin] for name, twin in twins.items()}
    return jax.jit(lambda flat: begin(unflatten(flat)), out_shardings=sharding)(params), 0


# The last layer of every residual branch, and of the UNet: a network from nothing begins with its skips and an answer of zero, as Stable Diffusion,
# ControlNet and AnimateDiff did.
ZEROS = r"^(unet|appearance|control)/.*(resnets_\d+/conv2|(attentions|motion_modules)_\d+/proj_out|conv_out|controlnet_\w+_blocks?(_\d+)?)/kernel$"


def initial_value(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """What a parameter starts from, float32: kernels normal with standard deviation 1 / sqrt(fan-in) or zero, norms the identity."""
    kind = name.rsplit("/", 1)[-1]
    if kind == "pe":
        return frame_sinusoid(*shape)
    if kind in ("bias", "scale") or re.search(ZEROS, name):
        return np.full(shape, kind == "scale", np.float32)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])  # the same whatever else is drawn
    deviation = {"kernel": math.prod(shape[:-1]) ** -0.5, "embedding": 0.02}[kind]  # of embeddings as CLIP's
    return np.float32(deviation) * rng.standard_normal(shape, np.float32)


def _twin(name: str, names: Flat) -> str | None:
    """The UNet's parameter in the same place. The ControlNet has the middle block beside its encoder, the UNet in its decoder."""
    root, rest = name.split("/", 1)
    if root not in ("appearance", "control"):
        return None
    return next(
        (
            twin
            for twin in (f"unet/{rest}", f"unet/decoder/{rest}")
            if twin in names and names[twin].shape == names[name].shape
        ),
        None,
    )


def _given(config: ml_collections.ConfigDict, sizes: AnimatorConfig, mesh: Mesh, workdir: Path) -> Flat:
    folder = Path(config.init_from)
    if not config.init_from:
        return {}
    if (folder / "checkpoints").is_dir():
        params, _ = read_parameters(folder, sharding=functools.partial(parameter_sharding, mesh))
        _check_shapes(params, flatten(parameter_shapes(sizes)), folder)
        for path in (folder / name for name in VOCABULARY):
            if path.is_file():
                shutil.copy(path, workdir)
        return params
    leaves, tokenizer = load_stable_diffusion(folder, sizes)
    if tokenizer.vocabulary is not None:
        for name, text in zip(VOCABULARY, (tokenizer.vocabulary, tokenizer.merges), strict=True):
            (workdir / name).write_text(text, "utf-8")
    flat = {"/".join(path): x for path, x in leaves.items()}
    return distribute_parameters(parameter_sharding(mesh, flat), flat)


def _check_shapes(found: Flat, expected: dict[str, jax.ShapeDtypeStruct], folder: Path) -> None:
    odd = [
        name
        for name in sorted(found.keys() | expected.keys())
        if np.shape(found.get(name)) != np.shape(expected.get(name))
    ]
    if odd:
        name = odd[0]
        shapes = (str(np.shape(tree[name])) if name in tree else "nothing" for tree in (expected, found))
        raise InputError(
            "{} is of another size than config.model: for {} expected {}, found {}".format(folder, name, *shapes)
        )


def make_tokenizer(sizes: AnimatorConfig, workdir: Path) -> Tokenizer:
    """The vocabulary that the first stage was started with, if it had one."""
    if (workdir / VOCABULARY[0]).is_file():
        return Tokenizer.from_directory(workdir, sizes.text.positions)
    return Tokenizer.without_vocabulary(sizes.text.vocabulary, sizes.text.positions)
