"""Names and shapes of tensors in the published files, and of the same tensors in our tree of parameters.

A leaf of our tree has a path, for example `("unet", "encoder", "conv_in", "kernel")`. Our modules carry the published
names, so a few rewrites turn a path into the published name, and no table of tensors is needed. The values differ in
layout: PyTorch's kernels are `out in` or `out in rows columns`, ours `in out` or `rows columns in out`. PyTorch's 1x1
convolutions are dense layers here.
"""

import re

import numpy as np

LeafPath = tuple[str, ...]

REWRITES = (  # regular expressions and replacements, applied one after another to a path joined by dots
    (r"^(unet|appearance|control)\.(encoder|decoder)\.", ""),  # published UNets are not divided into two halves
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
POINTWISE = re.compile(  # published names of 1x1 convolutions
    r"(conv_shortcut|quant_conv|controlnet_down_blocks\.\d+|controlnet_mid_block|attentions\.\d+\.proj_(in|out))\.weight$"
)
OLD_NAMES = (  # the attention of the autoencoder as diffusers named it before 0.17
    (r"(mid_block\.attentions\.0\.)query\.", r"\1to_q."),
    (r"(mid_block\.attentions\.0\.)key\.", r"\1to_k."),
    (r"(mid_block\.attentions\.0\.)value\.", r"\1to_v."),
    (r"(mid_block\.attentions\.0\.)proj_attn\.", r"\1to_out.0."),
)
WRAPPERS = re.compile(r"^(module\.|unet\.)+")  # prefixes that DataParallel and pipelines leave


def published_name(path: LeafPath) -> str:
    """The published name of the leaf at `path`."""
    name = ".".join(path)
    for pattern, replacement in REWRITES:
        name = re.sub(pattern, replacement, name)
    return name


def current_name(name: str) -> str:
    """A name from a file, without the prefixes of wrappers and with old names of layers replaced by current ones."""
    name = WRAPPERS.sub("", name)
    for pattern, replacement in OLD_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def published_shape(path: LeafPath, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The published shape of the leaf at `path`, which has `shape` in our tree."""
    if path[-1] == "pe":
        return (1, *shape)
    if path[-1] != "kernel":
        return shape
    if len(shape) == 4:
        rows, columns, inputs, outputs = shape
        return outputs, inputs, rows, columns
    inputs, outputs = shape
    return (outputs, inputs, 1, 1) if _is_pointwise(path) else (outputs, inputs)


def from_published(path: LeafPath, x: np.ndarray) -> np.ndarray:
    """The leaf at `path`, from a published tensor `x`."""
    if path[-1] == "pe":
        return x[0]
    if path[-1] != "kernel":
        return x
    if x.ndim == 4 and not _is_pointwise(path):
        return x.transpose(2, 3, 1, 0)
    return x.reshape(x.shape[:2]).T


def to_published(path: LeafPath, x: np.ndarray) -> np.ndarray:
    """The published tensor, contiguous in memory, from the leaf `x` at `path`."""
    shape = published_shape(path, x.shape)
    if path[-1] == "kernel":
        x = x.transpose(3, 2, 0, 1) if x.ndim == 4 else x.T
    return np.ascontiguousarray(x).reshape(shape)


def _is_pointwise(path: LeafPath) -> bool:
    return POINTWISE.search(published_name(path)) is not None
