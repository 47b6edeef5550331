"""What a run starts from. Each part is created where it will live: no device ever holds the whole."""

import functools
import logging
import math
import re
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

from mafx.commands import expand_home
from mafx.errors import InputError
from mafx.low_rank import add_update
from mafx.models.animator import AnimatorConfig, parameter_shapes
from mafx.models.temporal import frame_sinusoid
from mafx.pretrained.layout import load_stable_diffusion
from mafx.training.checkpoints import Checkpoints, read_parameters
from mafx.training.optimiser import make_optimiser
from mafx.training.runs import VOCABULARY_FILES, keep_vocabulary
from mafx.training.sharding import distribute_parameters, parameter_sharding
from mafx.training.step import TrainState, init_state, run_shapes, state_maker, state_sharding, step_state
from mafx.trees import Flat, flatten, unflatten

EVERYTHING = ((".*", True),)  # is trained

log = logging.getLogger("mafx")


def start(
    config: ml_collections.ConfigDict, sizes: AnimatorConfig, mesh: Mesh, workdir: Path, checkpoints: Checkpoints
) -> tuple[TrainState, int]:
    """The state that a run starts from, and how many examples were drawn for it.

    The state is the newest checkpoint of the work folder, if there is one. Otherwise each parameter comes from the
    first of these that has it: `config.init_from` (another work folder, or a folder of published weights); the UNet,
    which the appearance encoder and the ControlNet are copies of (*MagicAnimate*, section 3; *ControlNet*, section 3);
    random values.

    Raises:
      InputError: Where `config.init_from` or the newest checkpoint cannot be used.
    """
    if checkpoints.latest is not None:
        checkpoints.check()
    shapes = jax.eval_shape(state_maker(config), run_shapes(config, sizes))
    sharding = state_sharding(config, mesh, shapes)
    if checkpoints.latest is not None:
        abstract = jax.tree.map(
            lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, sharding
        )
        state, examples = checkpoints.restore(abstract)
        log.info("Going on from step %d of %s.", state.step, workdir)
        return state, examples
    params = _initial_parameters(config, sizes, mesh, workdir)
    # One after the other, so that what is frozen is never there twice.
    frozen = {name: jnp.array(params.pop(name), x.dtype) for name, x in shapes.frozen.items()}
    checkpoints.claim_frozen(frozen)

    @functools.partial(jax.jit, out_shardings=step_state(config, sharding)._replace(frozen={}))
    def begin(trainable: Flat) -> TrainState:
        state = init_state(unflatten(trainable), EVERYTHING, make_optimiser(config)[0], jnp.dtype(config.dtype))
        return step_state(config, state)

    state = begin(params)._replace(frozen=frozen)
    if config.ema_on == "host":
        state = state._replace(ema=jax.device_put(state.trainable, sharding.ema))
    return state, 0


def _initial_parameters(config: ml_collections.ConfigDict, sizes: AnimatorConfig, mesh: Mesh, workdir: Path) -> Flat:
    """All parameters, from what `config.init_from` has, the UNet, and random numbers."""
    params = _given_parameters(config, sizes, mesh, workdir)
    shapes = flatten(run_shapes(config, sizes))
    copies = {name: twin for name in shapes if name not in params and (twin := _twin(name, shapes))}
    missing = {name: x for name, x in shapes.items() if name not in params and name not in copies}
    if missing:
        log.info("%d of %d tensors start anew, %d as copies of the UNet's.", len(missing), len(shapes), len(copies))
    sharding = parameter_sharding(mesh, missing)
    for name, x in missing.items():  # one after the other: the host never holds more than one
        values = initial_value(name, x.shape, config.seed)
        params |= distribute_parameters({name: sharding[name]}, {name: values})
    return params | {name: params[twin] for name, twin in copies.items()}


# The last layer of every residual branch, and of the UNet. They start at zero, as those of Stable Diffusion, ControlNet
# and AnimateDiff did: a network from nothing begins with its skip connections and an answer of zero.
ZEROS = (
    r"^(unet|appearance|control)/.*"
    r"(resnets_\d+/conv2|(attentions|motion_modules)_\d+/proj_out|conv_out|controlnet_\w+_blocks?(_\d+)?)/kernel$"
)
EMBEDDING_DEVIATION = 0.02  # as CLIP's embeddings started


def initial_value(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """What a parameter starts from, float32.

    Kernels are normal with standard deviation 1 / sqrt(fan-in), or zero; norms are the identity. The values depend on
    the name and the seed only, whatever else is drawn.
    """
    kind = name.rsplit("/", 1)[-1]
    if kind == "pe":
        return frame_sinusoid(*shape)
    if kind in ("bias", "scale", "b") or re.search(ZEROS, name):
        return np.full(shape, kind == "scale", np.float32)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    fan_in = math.prod(shape[:-1]) ** -0.5
    deviation = {"kernel": fan_in, "a": fan_in, "embedding": EMBEDDING_DEVIATION}[kind]
    return np.float32(deviation) * rng.standard_normal(shape, np.float32)


def _twin(name: str, shapes: Flat) -> str | None:
    """The parameter of the UNet in the same place.

    The ControlNet has its middle block beside its encoder, the UNet has it in its decoder.
    """
    root, rest = name.split("/", 1)
    if root not in ("appearance", "control"):
        return None
    twins = (f"unet/{rest}", f"unet/decoder/{rest}")
    return next((twin for twin in twins if twin in shapes and shapes[twin].shape == shapes[name].shape), None)


def _given_parameters(config: ml_collections.ConfigDict, sizes: AnimatorConfig, mesh: Mesh, workdir: Path) -> Flat:
    """The parameters of `config.init_from`; its vocabulary is copied into the work folder."""
    folder = expand_home(config.init_from)
    if not config.init_from:
        return {}
    if (folder / "checkpoints").is_dir():
        params = add_update(read_parameters(folder, sharding=functools.partial(parameter_sharding, mesh))[0])
        _check_shapes(params, flatten(parameter_shapes(sizes)), folder)
        found = [name for name in VOCABULARY_FILES if (folder / name).is_file()]
        keep_vocabulary({name: (folder / name).read_text("utf-8") for name in found}, workdir)
        return params
    leaves, tokenizer = load_stable_diffusion(folder, sizes)
    if tokenizer.vocabulary is not None and tokenizer.merges is not None:
        keep_vocabulary(dict(zip(VOCABULARY_FILES, (tokenizer.vocabulary, tokenizer.merges), strict=True)), workdir)
    flat = {"/".join(path): x for path, x in leaves.items()}
    return distribute_parameters(parameter_sharding(mesh, flat), flat)


def _check_shapes(params: Flat, expected: Flat, folder: Path) -> None:
    for name in sorted(params.keys() | expected.keys()):
        shapes = [str(np.shape(tree[name])) if name in tree else "nothing" for tree in (expected, params)]
        if shapes[0] != shapes[1]:
            difference = "for {} expected {}, found {}".format(name, *shapes)
            raise InputError(f"{folder} is of another size than config.model: {difference}")
