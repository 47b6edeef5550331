"""Measures that need published networks: LPIPS of frames, and Fréchet distances between the features of all results and all truths.

The networks' files lie in one folder, as their authors publish them:

vgg16-397923af.pth, vgg.pth             LPIPS: torchvision's VGG-16, and the layers' weights from `lpips` (its weights/v0.1)
pt_inception-2015-12-05-6726825d.pth    FID, from `pytorch-fid`
resnet-50-kinetics.pth                  FID-VID, from 3D-ResNets-PyTorch
i3d_pretrained_400.pt                   FVD, from VideoGPT

A measure whose file is not there is left out. The features of each clip are stored, so that whoever has all of them finds the same distances.
"""

import functools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from mafx.errors import InputError
from mafx.evaluation import networks
from mafx.metrics import mean_of_defined
from mafx.pretrained.formats import open_tensors

log = logging.getLogger("mafx")

FILES = {
    "lpips": ("vgg16-397923af.pth", "vgg.pth"),
    "fid": ("pt_inception-2015-12-05-6726825d.pth",),
    "fid_vid": ("resnet-50-kinetics.pth",),
    "fvd": ("i3d_pretrained_400.pt",),
}
FRECHET = {"fid": networks.inception, "fid_vid": networks.resnet3d, "fvd": networks.i3d}
UNUSED = ("num_batches_tracked", "fc.", "classifier.", "AuxLogits.")  # parts of published names
WINDOW = 16  # frames that the networks of videos see
KINETICS_MEAN = (114.7748, 107.7354, 99.4750)  # of 255
GREY = 127  # what stands around a person alone


class Networks:
    """The networks whose files are in a folder."""

    def __init__(self, folder: Path | None):
        self._tensors = {}
        for name, files in FILES.items():
            missing = [file for file in files if folder is None or not (folder / file).is_file()]
            if folder is not None and missing:
                log.warning("No %s: %s is not in %s.", name.upper().replace("_", "-"), " and ".join(missing), folder)
            elif not missing:
                self._tensors[name] = read_network(name, [folder / file for file in files])

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def lpips(self, video: np.ndarray, truth: np.ndarray, person: np.ndarray) -> dict[str, float]:
        """LPIPS as its library defines it; of the mask `f H W`, by its map; and as DisCo computes it, which gives pictures in [0, 1] to a network
        that expects [-1, 1]. Videos are uint8 `f H W 3`."""
        w = self._tensors["lpips"]
        rows = []
        for a, b, mask in zip(*(x[:, None].astype(np.float32) for x in (video, truth)), person, strict=True):
            values, where = _run(networks.lpips, w, a / 127.5 - 1, b / 127.5 - 1)
            inside = np.asarray(where[0])[mask].mean() if mask.any() else np.nan
            rows.append((values[0], inside, _run(networks.lpips, w, a / 255, b / 255)[0][0]))
        whole, inside, legacy = np.array(rows, np.float64).T
        return {"lpips": whole.mean(), "lpips_person": mean_of_defined(inside), "lpips_legacy": legacy.mean()}

    def features(self, video: np.ndarray, person: np.ndarray) -> dict[str, np.ndarray]:
        """Of a video uint8 `f H W 3`: float32 `k c` for each Fréchet distance, and behind "_person" with all outside of the mask `f H W` painted
        grey. k is f for FID, f - 15 for the others: one for every window of 16 frames."""
        alone = np.where(person[..., None], video, np.uint8(GREY))
        found = {}
        for name in [name for name in FRECHET if name in self]:
            for suffix, x in (("", video), ("_person", alone)):
                parts = [_run(FRECHET[name], self._tensors[name], batch) for batch in INPUTS[name](x)]
                found[name + suffix] = np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)
        return found


_run = functools.partial(jax.jit, static_argnums=0)(lambda network, w, *x: network(w, *x))


def _frames(video: np.ndarray, batch: int = 16) -> Iterator[np.ndarray]:
    """Frames of 1, `batch` at a time."""
    return (video[i : i + batch].astype(np.float32) / 255 for i in range(0, len(video), batch))


def _windows(size: int, scale: Callable[[np.ndarray], np.ndarray], video: np.ndarray) -> Iterator[np.ndarray]:
    """Every 16 neighbouring frames, `1 f h w c`, resized bicubically, each channel by itself and without rounding."""
    resize = lambda channel: np.asarray(
        Image.fromarray(channel.astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC)
    )  # noqa: E731
    frames = scale(np.stack([np.stack([resize(frame[..., c]) for c in range(3)], -1) for frame in video])).astype(
        np.float32
    )
    return (frames[None, i : i + WINDOW] for i in range(len(frames) - WINDOW + 1))


INPUT_SHAPES = {
    "lpips": (1, 32, 32, 3),
    "fid": (1, 299, 299, 3),
    "fid_vid": (1, WINDOW, 112, 112, 3),
    "fvd": (1, WINDOW, 224, 224, 3),
}
INPUTS = {
    "fid": _frames,
    "fid_vid": functools.partial(_windows, 112, lambda x: x - np.array(KINETICS_MEAN, np.float32)),
    "fvd": functools.partial(_windows, 224, lambda x: x / 127.5 - 1),
}


def read_network(name: str, paths: Sequence[Path]) -> dict[str, jax.Array]:
    """The tensors of published files. Raises InputError where they are not those of the network."""
    tensors = {}
    for path in paths:
        file = open_tensors(path)
        tensors |= {
            key.removeprefix("module."): jnp.asarray(file.read(key))
            for key in file.shapes
            if not any(part in key for part in UNUSED)
        }
    used, picture = _Used(tensors), jax.ShapeDtypeStruct(INPUT_SHAPES[name], jnp.float32)
    expected = f"{' and '.join(path.name for path in paths)}: expected the network of {name}"
    try:
        if name == "lpips":
            jax.eval_shape(functools.partial(networks.lpips, used), picture, picture)
        else:
            jax.eval_shape(functools.partial(FRECHET[name], used), picture)
    except KeyError as error:
        raise InputError(f"{expected}, found no tensor {error}") from error
    except (TypeError, ValueError) as error:
        raise InputError(f"{expected}, found tensors of other shapes ({error})") from error
    if odd := sorted(tensors.keys() - used.names):
        raise InputError(f"{expected}, found tensors that it has no use for: {', '.join(odd[:3])}")
    return tensors


class _Used(Mapping):
    """A mapping that remembers which of its keys were asked for."""

    def __init__(self, content: Mapping):
        self._content, self.names = content, set()

    def __getitem__(self, name):
        value = self._content[name]
        self.names.add(name)
        return value

    def __iter__(self):
        return iter(self._content)

    def __len__(self):
        return len(self._content)


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Between the normal distributions of features `k c` (k may differ): |mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)).

    The trace of the root is the sum of the singular values of R_a R_b^T, where C = R^T R: no root of a matrix that may be singular, exact for few
    examples as well. nan where there are fewer than two.
    """
    if min(len(a), len(b)) < 2:
        return math.nan
    (mean_a, a), (mean_b, b) = (
        (x.mean(0), (x - x.mean(0)) / np.sqrt(len(x) - 1)) for x in (a.astype(np.float64), b.astype(np.float64))
    )
    roots = np.linalg.qr(a, "r") @ np.linalg.qr(b, "r").T
    return float(
        np.square(mean_a - mean_b).sum()
        + np.square(a).sum()
        + np.square(b).sum()
        - 2 * np.linalg.svd(roots, compute_uv=False).sum()
    )
