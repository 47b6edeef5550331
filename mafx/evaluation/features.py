"""Measures that need published networks: LPIPS of frames, and Fréchet distances between all results and all truths.

The networks' files lie in one folder, as their authors publish them:

    vgg16-397923af.pth, vgg.pth             LPIPS: torchvision's VGG-16, and the weights of its stages from the package
                                            `lpips` (weights/v0.1 there)
    pt_inception-2015-12-05-6726825d.pth    FID, from `pytorch-fid`
    resnet-50-kinetics.pth                  FID-VID, from 3D-ResNets-PyTorch
    i3d_pretrained_400.pt                   FVD, from VideoGPT

A measure whose files are missing is left out.
"""

import dataclasses
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
from mafx.files import check_finite
from mafx.metrics import mean_of_defined
from mafx.pretrained.formats import open_tensors

log = logging.getLogger("mafx")

UNUSED = ("num_batches_tracked", "fc.", "classifier.", "AuxLogits.")  # parts of published names
WINDOW = 16  # frames that the networks of videos see
KINETICS_MEAN = (114.7748, 107.7354, 99.4750)  # colours in [0, 255]
GREY = 127  # what everything around the person is painted with, where the person alone counts


# -- What each network is given


def picture_batches(video: np.ndarray, size: int = 16) -> Iterator[np.ndarray]:
    """The frames of a video uint8 `f H W 3` as float32 `b H W 3` in [0, 1], `size` of them at a time."""
    return (video[i : i + size].astype(np.float32) / 255 for i in range(0, len(video), size))


def resnet_windows(video: np.ndarray) -> Iterator[np.ndarray]:
    """All windows of a video uint8 `f H W 3` as `networks.resnet3d` needs them, float32 `1 16 112 112 3`."""
    return _windows(_resize_frames(video, 112) - np.array(KINETICS_MEAN, np.float32))


def i3d_windows(video: np.ndarray) -> Iterator[np.ndarray]:
    """All windows of a video uint8 `f H W 3` as `networks.i3d` needs them, float32 `1 16 224 224 3`."""
    return _windows(_resize_frames(video, 224) / 127.5 - 1)


def _resize_frames(video: np.ndarray, side: int) -> np.ndarray:
    """Bicubic to squares, float32 `f side side 3` in [0, 255]: each channel by itself, so that nothing is rounded."""
    return np.stack([np.stack([_resize_channel(frame[..., c], side) for c in range(3)], -1) for frame in video])


def _resize_channel(channel: np.ndarray, side: int) -> np.ndarray:
    picture = Image.fromarray(channel.astype(np.float32))
    return np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC))


def _windows(frames: np.ndarray) -> Iterator[np.ndarray]:
    """Every `WINDOW` neighbouring frames; none where there are fewer."""
    frames = frames.astype(np.float32)
    return (frames[None, i : i + WINDOW] for i in range(len(frames) - WINDOW + 1))


@dataclasses.dataclass(frozen=True)
class NetworkSpec:
    """A network that a measure needs.

    Attributes:
      files: Names of its files.
      function: The network: a function of its tensors and of arrays.
      input_shapes: Shapes of those arrays, for example.
      batches: For Fréchet distances: from a video uint8 `f H W 3` to what the network is given, one batch at a time.
    """

    files: tuple[str, ...]
    function: Callable
    input_shapes: tuple[tuple[int, ...], ...]
    batches: Callable[[np.ndarray], Iterator[np.ndarray]] | None = None


NETWORKS = {  # by the names of measures
    "lpips": NetworkSpec(("vgg16-397923af.pth", "vgg.pth"), networks.lpips, ((1, 32, 32, 3), (1, 32, 32, 3))),
    "fid": NetworkSpec(
        ("pt_inception-2015-12-05-6726825d.pth",), networks.inception, ((1, 299, 299, 3),), picture_batches
    ),
    "fid_vid": NetworkSpec(("resnet-50-kinetics.pth",), networks.resnet3d, ((1, WINDOW, 112, 112, 3),), resnet_windows),
    "fvd": NetworkSpec(("i3d_pretrained_400.pt",), networks.i3d, ((1, WINDOW, 224, 224, 3),), i3d_windows),
}


# -- The networks that are there


class MetricNetworks:
    """The networks of `NETWORKS` whose files are there. `name in networks` says whether one is."""

    def __init__(self, folder: Path | None):
        """Load the networks and log which are missing.

        Args:
          folder: Where the files lie. None means that no network is wanted.

        Raises:
          InputError: A file does not hold what it should.
        """
        self._tensors: dict[str, dict[str, jax.Array]] = {}
        if folder is None:
            return
        for name, spec in NETWORKS.items():
            missing = [file for file in spec.files if not (folder / file).is_file()]
            if missing:
                log.warning("No %s: %s is not in %s.", name.upper().replace("_", "-"), " and ".join(missing), folder)
            else:
                self._tensors[name] = read_network(name, [folder / file for file in spec.files])

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def lpips(self, video: np.ndarray, truth: np.ndarray, person: np.ndarray) -> dict[str, float]:
        """LPIPS in three ways, each a mean over frames.

        Args:
          video: uint8 `f H W 3`.
          truth: The same.
          person: A mask, bool `f H W`.

        Returns:
          `lpips` as its package defines it; `lpips_person`, the mean of its map over the mask; `lpips_legacy` as DisCo
          computes it, which gives pictures in [0, 1] to a network that expects [-1, 1].
        """
        w = self._tensors["lpips"]
        whole, inside, legacy = [], [], []
        for frame, true_frame, mask in zip(video, truth, person, strict=True):
            a, b = frame[None].astype(np.float32), true_frame[None].astype(np.float32)
            distance, distance_map = run_network(networks.lpips, w, a / 127.5 - 1, b / 127.5 - 1)
            whole.append(float(distance[0]))
            inside.append(float(np.asarray(distance_map[0])[mask].mean()) if mask.any() else math.nan)
            legacy.append(float(run_network(networks.lpips, w, a / 255, b / 255)[0][0]))
        return {
            "lpips": float(np.mean(whole)),
            "lpips_person": mean_of_defined(inside),
            "lpips_legacy": float(np.mean(legacy)),
        }

    def features(self, video: np.ndarray, person: np.ndarray) -> dict[str, np.ndarray]:
        """What the networks of the Fréchet distances see in a video.

        Args:
          video: uint8 `f H W 3`.
          person: A mask, bool `f H W`.

        Returns:
          For each network float32 `k c`, under the name of its measure, and under that name with "_person" of the
          video in which everything outside the mask is grey. `k` is f for FID, and the number of windows of 16 frames,
          f - 15, for the others. It is `0 0` where the video has no window.
        """
        alone = np.where(person[..., None], video, np.uint8(GREY))
        features = {}
        for name, spec in NETWORKS.items():
            if name not in self or spec.batches is None:
                continue
            for suffix, pictures in (("", video), ("_person", alone)):
                w, batches = self._tensors[name], spec.batches(pictures)
                parts = [np.asarray(run_network(spec.function, w, batch)) for batch in batches]
                features[name + suffix] = np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)
        return features


@functools.partial(jax.jit, static_argnums=0)
def run_network(network: Callable, w: networks.Tensors, *inputs: jax.Array):
    """`network(w, *inputs)`, compiled."""
    return network(w, *inputs)


def read_network(name: str, paths: Sequence[Path]) -> dict[str, jax.Array]:
    """Read the tensors of a network, and check them by following the network's shapes.

    Args:
      name: A key of `NETWORKS`.
      paths: Its files.

    Raises:
      InputError: A tensor is missing, has another shape, or is of no use to the network.
    """
    spec = NETWORKS[name]
    tensors: dict[str, jax.Array] = {}
    for path in paths:
        file = open_tensors(path)
        wanted = [key for key in file.shapes if not any(part in key for part in UNUSED)]
        tensors |= {
            key.removeprefix("module."): jnp.asarray(check_finite(file.read(key), f"{path}: {key}")) for key in wanted
        }
    recorder = _Recorder(tensors)
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in spec.input_shapes]
    expected = f"{' and '.join(path.name for path in paths)}: expected the network of {name}"
    try:
        jax.eval_shape(functools.partial(spec.function, recorder), *inputs)
    except KeyError as error:
        raise InputError(f"{expected}, found no tensor {error}") from error
    except (TypeError, ValueError) as error:
        raise InputError(f"{expected}, found tensors of other shapes ({error})") from error
    unused = sorted(tensors.keys() - recorder.names)
    if unused:
        raise InputError(f"{expected}, found tensors that it has no use for: {', '.join(unused[:3])}")
    return tensors


class _Recorder(Mapping[str, jax.Array]):
    """A mapping that keeps the names of the tensors that were taken out of it."""

    def __init__(self, tensors: dict[str, jax.Array]):
        self._tensors = tensors
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> jax.Array:
        tensor = self._tensors[name]
        self.names.add(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


# -- Fréchet distance


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The squared Fréchet distance between the normal distributions that have the features' means and covariances.

    This is |mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)). With C = R^T R, the trace of the root is the sum of
    the singular values of R_a R_b^T. So no root of a matrix is needed that may be singular, and the distance is exact
    for few examples too.

    Args:
      a: Features `k c`.
      b: Features `j c`.

    Returns:
      The distance, nan if there are fewer than two examples on a side.
    """
    if min(len(a), len(b)) < 2:
        return math.nan
    mean_a, a = _centre(a)
    mean_b, b = _centre(b)
    root_a, root_b = (np.asarray(np.linalg.qr(x, mode="r")) for x in (a, b))
    trace_of_root = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    return float(np.square(mean_a - mean_b).sum() + np.square(a).sum() + np.square(b).sum() - 2 * trace_of_root)


def _centre(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean `c`, and a matrix `k c` whose product with itself is the covariance."""
    x = x.astype(np.float64)
    mean = x.mean(0)
    return mean, (x - mean) / np.sqrt(len(x) - 1)
