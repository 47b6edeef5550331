"""mafx: MagicAnimate in JAX. A reference image and a DensePose motion go in, a video of that person moving comes out.

Glossary:

- reference: the picture of the person to animate, and its latents.
- motion: the driving video, DensePose renders `f H W 3`.
- render: one frame of a motion, a map of labels drawn with the palette.
- labels: DensePose's 24 body parts; 0 is the background.
- bank: y_a, the normalised hidden states that the appearance encoder writes before each self-attention, and that the
  mixed attention of the UNet reads.
- residuals: y_p, what the pose ControlNet adds to the skip connections and the middle block of the UNet.
- temporal layers: attention over the frames of a clip; published files call them motion modules.
- latents: what the autoencoder makes of pictures; its factor is the number of pixels per latent position.
- t: diffusion time, and nothing else.
- half: the conditional or the unconditional half of classifier-free guidance.
- window: the frames that go through the networks together; the windows of a long video overlap.
- program: everything that an animation computes, as a value to lower, compile, cost or run.
- clip: frames of one person with their renders; data sets are made of clips.
- run: the training of one stage ("appearance" or "temporal"); it keeps everything in its work folder.
- page: what people see of mafx in a browser; its jobs have turns.
- update: a low-rank change of a model's weights, trained on one person.
- stamp: a small JSON file that says what the thing beside it belongs to; compared whenever that is used.
- fingerprint: digits that change with every bit of weights or data.

Axis letters: `b` batch, `f` frames, `h w` rows and columns of latents (`H W` in pixels), `c` channels, `n` tokens, `m`
tokens that all frames share, `a d` attention heads and their width. Videos and latents are `b f h w c`.

Reading order, in which a module imports only from those before it:

    errors, limits, files, interrupts, commands, tables, trees, stamps
    boxes, media, densepose, densepose.capsules, metrics
    densepose: people, pose_files, pose_networks, landmarks, bodies
    diffusion: schedule, samplers, losses, windows
    puppets: looks, moves, figure, drawing
    puppets
    data: clips, raw, layouts, staging
    models: kernels, convolution, layers, fused, attention, temporal, unet, control
    models: autoencoder, text, ablated, animator
    placing, model
    pretrained: pickles, tensors, safetensors_files, torch_files, array_pickles, formats, names, configs, layout
    low_rank
    bundled
    compiling, progress, flops, settings, steps, sampling, budget, program, animation
    densepose: layers, resnet, proposals, roi, heads, rcnn, rcnn_weights, rcnn_run, dumps
    densepose: kept, finders, colour_maps, steady, tracks, motions, align, agreement
    data: drawing, builders, datasets, examples, latents
    evaluation: networks, random_features, features, summary, protocol
    training: optimiser, config, sharding, averages, step, checkpoints, runs, start, watch, charts, page, loop, fit
    sources, inputs, jobs, densepose.__main__
    inspect: record, recording, pictures, views, parts, __main__
    web: turns, folders, links, uploads, service, guard, asking, animate_tab, inspect_tab
    web: imitation, mirror, hall, mirror_tab, page, server, __main__
    pretrained: export, origins, transfers, download
    bundled.release
    ahead: targets, hlo, reports, pallas, costs, categories, programs, compiling, rows, summary, __main__
    benchmarks: memory, measure, speed, published, quality, mutations, fuzz_readers, fuzz, web_load
    experiments: runs, ablations, few_steps, one_clip, personal, mirror, everything, kills

Where to begin: `models.animator` is where the bank and the residuals meet the noisy latents, `models.attention` has the
mixed attention, `program` is an animation from beginning to end, `training.loop` is a training.
"""

import importlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mafx.animation import animate
    from mafx.bundled import load_bundled
    from mafx.errors import InputError
    from mafx.model import Model, random_model
    from mafx.pretrained.layout import load_pretrained, save_pretrained
    from mafx.program import Animation, Program, plan
    from mafx.settings import Settings
    from mafx.training.runs import load_run

__version__ = "0.1.0"

# Public names and where they are defined. They are imported when they are used: JAX alone takes half a second.
_MODULES = {
    "Animation": "mafx.program",
    "InputError": "mafx.errors",
    "Model": "mafx.model",
    "Program": "mafx.program",
    "Settings": "mafx.settings",
    "animate": "mafx.animation",
    "load_bundled": "mafx.bundled",
    "load_pretrained": "mafx.pretrained.layout",
    "load_run": "mafx.training.runs",
    "plan": "mafx.program",
    "random_model": "mafx.model",
    "save_pretrained": "mafx.pretrained.layout",
}
__all__ = [
    "Animation",
    "InputError",
    "Model",
    "Program",
    "Settings",
    "animate",
    "load_bundled",
    "load_pretrained",
    "load_run",
    "plan",
    "random_model",
    "save_pretrained",
]


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module 'mafx' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


if sys.argv[:1] == ["-m"]:  # Python imports this package for `python -m mafx.COMMAND`, whose imports take seconds
    from mafx.interrupts import leave_while_importing

    leave_while_importing(f"python -m {next((x for x in sys.orig_argv if x.startswith('mafx')), 'mafx')}")
