"""mafx: MagicAnimate in JAX. A reference image and a DensePose motion sequence in, a video of that person moving so out.

Axis letters, the same everywhere: `b` batch, `f` frames, `h w` rows and columns of latents (`H W` in pixels), `c` channels, `n` tokens, `m` tokens
that all frames share, `a d` attention heads and their width, `t` only ever diffusion time. Videos and latents are `b f h w c`.

Reading order: media, densepose, metrics, data, diffusion (arrays, no network), models, model, bundled, pretrained, compiling, sampling, animate,
training, evaluation. A module imports only from those before it.
"""

from mafx.animate import Animation, Settings, animate, compile_ahead
from mafx.bundled import load_bundled
from mafx.errors import InputError
from mafx.model import Model, random_model
from mafx.pretrained.layout import load_pretrained, save_pretrained

__all__ = [
    "Animation",
    "InputError",
    "Model",
    "Settings",
    "animate",
    "compile_ahead",
    "load_bundled",
    "load_pretrained",
    "random_model",
    "save_pretrained",
]
__version__ = "0.1.0"
