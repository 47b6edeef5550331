"""What a kernel belongs to, by JAX's names for its operations: a kind of work, and a part of the networks."""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from mafx.ahead.costs import CONVOLUTION, PALLAS_ATTENTION, PALLAS_PRODUCT, Kernel

# Parts of the networks, by a pattern of their names; the first that fits.
PARTS = (
    ("ControlNet", r"Animator\.(residuals|embed_motion)|/control/"),
    ("appearance encoder", r"Animator\.bank|/appearance/"),
    ("autoencoder", r"autoencoder"),
    ("text encoder", r"encode_text|/text/"),
    ("UNet: down path", r"unet\.encode|/encoder/"),
    ("UNet: middle and up", r"unet\.decode|/decoder/"),
    # What a training step does outside of the loss, and its casts of the masters.
    ("weights: update, norms, casts", r"^jit\(step\)/(?!jvp|transpose)|jvp\(\)\)?/convert_element_type"),
)
REST = "everything else"
TEMPORAL = "motion_modules"  # the published name
ATTENDS = r"attn\d|attention_blocks_\d"
PROJECTS = r"/(to_[qkv]|to_out)/"
GROUP_NORM = r"resnets_\d+/norm\d|(attentions|motion_modules)_\d+/norm/|conv_norm_out|group_norm"
LAYER_NORM = r"/(norm\d|norms_\d|ff_norm|layer_norm\d?|final_layer_norm)/"
MOVING = {"copy", "transpose", "concatenate", "slice", "dynamic-slice", "dynamic-update-slice", "pad", "broadcast"}
MOVING |= {"reverse", "reshape", "gather", "scatter", "copy-start"}


class Sum(NamedTuple):
    """What some kernels take together.

    Attributes:
      seconds: By the model.
      flops: Floating-point operations.
      size: Bytes that are read and written.
      launches: Number of runs.
    """

    seconds: float = 0.0
    flops: float = 0.0
    size: float = 0.0
    launches: int = 0


def add_up(kernels: Iterable[Kernel]) -> Sum:
    """What kernels take together, all their runs counted."""
    every = list(kernels)
    return Sum(
        seconds=sum(k.seconds * k.count for k in every),
        flops=sum(k.work.flops * k.count for k in every),
        size=sum(k.size * k.count for k in every),
        launches=sum(k.count for k in every),
    )


def group(kernels: Iterable[Kernel], key: Callable[[Kernel], str]) -> dict[str, Sum]:
    """What the kernels of each group take together, the longest first."""
    members: dict[str, list[Kernel]] = {}
    for kernel in kernels:
        members.setdefault(key(kernel), []).append(kernel)
    sums = {name: add_up(own) for name, own in members.items()}
    return dict(sorted(sums.items(), key=lambda item: -item[1].seconds))


def network_part(kernel: Kernel) -> str:
    """The part of the networks that a kernel belongs to: by its own name, else by those of what is fused into it."""
    for names in ([kernel.op_name], sorted(kernel.op_names)):
        for title, pattern in PARTS:
            if any(re.search(pattern, name) for name in names):
                return title
    return REST


def category(kernel: Kernel) -> str:
    """The kind of work that a kernel does."""
    path = kernel.op_name
    temporal = "temporal " if TEMPORAL in path else ""
    match kernel.kind:
        case "convolution":
            return CONVOLUTION
        case "attention" | "Pallas attention":
            return f"{temporal}attention, fused" + (" (Pallas)" if kernel.kind == PALLAS_ATTENTION else "")
        case "product" | "Pallas product":
            return _product_category(kernel, temporal)
    if kernel.kind in MOVING:
        return "copies, transposes, slices"
    return f"others: {kernel.kind}" if "custom-call" in kernel.opcodes else _rest_category(kernel, temporal)


def _product_category(kernel: Kernel, temporal: str) -> str:
    path = kernel.op_name
    if re.search(r"/ff/", path) or kernel.kind == PALLAS_PRODUCT:
        return "products: feed-forward"
    if re.search(ATTENDS, path) and not re.search(PROJECTS, path):
        return f"products: {temporal}scores and values"
    return f"products: {temporal}projections"


def _rest_category(kernel: Kernel, temporal: str) -> str:
    """The first that fits of the norms, softmax, GEGLU, and what only moves or adds, fused or not."""
    names = " ".join(kernel.op_names)
    reduces = "reduce" in kernel.opcodes
    if reduces and re.search(GROUP_NORM, names):
        return "GroupNorm: statistics"
    if reduces and re.search(LAYER_NORM, names):
        return "LayerNorm"
    if (reduces or "exponential" in kernel.opcodes) and re.search(ATTENDS, names):
        return f"{temporal}softmax"
    if re.search(r"/ff/(erfc?|gelu|mul|split)", names):
        return "GEGLU"
    if re.search(GROUP_NORM, names):
        return "GroupNorm: normalise, SiLU"
    if re.search(LAYER_NORM, names):
        return "LayerNorm"
    if reduces:
        return "other reductions"
    if temporal:
        return "temporal layout, add"
    if kernel.opcodes & MOVING - {"broadcast", "reshape", "slice"}:
        return "copies, transposes, slices"
    return "add, cast, ..."
