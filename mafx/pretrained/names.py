"""Published tensors and leaves of our tree: how one is called and shaped in terms of the other.

Our modules carry the published names, so a name follows from a path by a few rewrites; there is no table of tensors. PyTorch's kernels are
`out in (rows columns)`, ours `(rows columns) in out`; its 1x1 convolutions are dense layers here.
"""

import re

import numpy as np

Path = tuple[str, ...]

REWRITES = (
    (r"^(unet|appearance|control)\.(encoder|decoder)\.", ""),  # the halves of a UNet are ours
    (r"^(unet|appearance|control|autoencoder)\.", ""),
    (r"^text\.(token_embedding|position_embedding)\.", r"text_model.embeddings.\1."),
    (r"^text\.layers_", "text_model.encoder.layers_"),
    (r"^text\.", "text_model."),
    (r"(?<!linear)_(\d+)(?=\.)", r".\1"),
    (r"\.mlp_", ".mlp."),
    (r"\.to_out\.", ".to_out.0."),
    (r"\.ff\.proj_in\.", ".ff.net.0.proj."),
    (r"\.ff\.proj_out\.", ".ff.net.2."),
    (r"(motion_modules\.\d+)\.", r"\1.temporal_transformer."),
    (r"\.pe$", ".pos_encoder.pe"),
    (r"\.(kernel|scale|embedding)$", ".weight"),
)
POINTWISE = re.compile(
    r"(conv_shortcut|quant_conv|controlnet_down_blocks\.\d+|controlnet_mid_block|attentions\.\d+\.proj_(in|out))\.weight$"
)
OLD_NAMES = (  # of the autoencoder's attention, before diffusers 0.17
    (r"(mid_block\.attentions\.0\.)query\.", r"\1to_q."),
    (r"(mid_block\.attentions\.0\.)key\.", r"\1to_k."),
    (r"(mid_block\.attentions\.0\.)value\.", r"\1to_v."),
    (r"(mid_block\.attentions\.0\.)proj_attn\.", r"\1to_out.0."),
)
WRAPPERS = re.compile(r"^(module\.|unet\.)+")  # left by DataParallel and by pipelines


def published_name(path: Path) -> str:
    """The name of a leaf of our tree in the published files."""
    name = ".".join(path)
    for pattern, replacement in REWRITES:
        name = re.sub(pattern, replacement, name)
    return name


def current_name(name: str) -> str:
    """A name as found in a file, freed of wrappers and brought to today's spelling."""
    name = WRAPPERS.sub("", name)
    for pattern, replacement in OLD_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def published_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a leaf of our tree in the published files."""
    if path[-1] == "pe":
        return (1, *shape)
    if path[-1] != "kernel":
        return shape
    if len(shape) == 4:
        return shape[3], shape[2], shape[0], shape[1]
    return (shape[1], shape[0], 1, 1) if POINTWISE.search(published_name(path)) else shape[::-1]


def from_published(path: Path, x: np.ndarray) -> np.ndarray:
    """A published tensor as the leaf at `path`."""
    if path[-1] == "pe":
        return x[0]
    if path[-1] != "kernel":
        return x
    return (
        x.transpose(2, 3, 1, 0)
        if x.ndim == 4 and not POINTWISE.search(published_name(path))
        else x.reshape(x.shape[:2]).T
    )


def to_published(path: Path, x: np.ndarray) -> np.ndarray:
    """The leaf at `path` as a published tensor, contiguous."""
    shape = published_shape(path, x.shape)
    if path[-1] == "kernel":
        x = x.transpose(3, 2, 0, 1) if x.ndim == 4 else x.T
    return np.ascontiguousarray(x).reshape(shape)
