"""The networks of LPIPS, FID, FID-VID and FVD against the originals.

networks.npz holds the names and shapes of all their tensors, and outputs that PyTorch 2.13 computed on a CPU with the
tensors of network_weights.py: by `lpips` 0.1.4 on torchvision's VGG-16, by `pytorch-fid` 0.3.0 (network and distance),
and by transcripts of the ResNet, the I3D and the resizing that DisCo measures with (its tool/metrics, commit 4772790).
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from conftest import relative_error
from network_weights import draw

from mafx.errors import InputError
from mafx.evaluation import features
from mafx.evaluation.features import NETWORKS, MetricNetworks, frechet_distance, read_network, run_network
from mafx.pretrained.torch_files import write_torch_archive

EXPECTED = np.load(Path(__file__).parent / "networks.npz")
SHAPES = json.loads(str(EXPECTED["shapes"]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Published files with random tensors."""
    path = tmp_path_factory.mktemp("networks")
    for file, shapes in SHAPES.items():
        tensors = {name: draw(name, tuple(shape)) for name, shape in shapes.items()}
        if file == "vgg.pth":
            tensors = {name: np.abs(x) for name, x in tensors.items()}
        prefix = "module." if file.startswith("resnet") else ""
        write_torch_archive(path / file, ((prefix + name, x) for name, x in tensors.items()))
    return path


def pictures(seed):
    return np.random.default_rng(seed).integers(0, 256, (2, 40, 36, 3), dtype=np.uint8)


def test_lpips(folder):
    a, b = pictures(1), pictures(2)
    mask = np.zeros(a.shape[:3], bool)
    mask[:, 4:20, 7:30] = True
    values = MetricNetworks(folder).lpips(a, b, mask)
    inside = np.mean([x[m].mean() for x, m in zip(EXPECTED["lpips_map"], mask, strict=True)])
    assert values["lpips"] == pytest.approx(EXPECTED["lpips"].mean(), rel=1e-4)
    assert values["lpips_person"] == pytest.approx(inside, rel=1e-4)
    assert values["lpips_legacy"] != pytest.approx(values["lpips"], rel=1e-2)
    assert math.isnan(MetricNetworks(folder).lpips(a, b, np.zeros_like(mask))["lpips_person"])


def network_inputs(name):
    if name == "fid":
        return next(features.picture_batches(pictures(1)))
    if name == "fid_vid":
        return np.random.default_rng(4).uniform(-110, 140, (1, 16, 112, 112, 3)).astype(np.float32)
    return np.random.default_rng(5).uniform(-1, 1, (1, 16, 224, 224, 3)).astype(np.float32)


@pytest.mark.parametrize("name", ["fid", "fid_vid", "fvd"])
def test_features(name, folder):
    spec = NETWORKS[name]
    w = read_network(name, [folder / file for file in spec.files])
    assert relative_error(run_network(spec.function, w, network_inputs(name)), EXPECTED[name]) < 1e-4


def test_windows_of_a_video(rng):
    frame = np.random.default_rng(6).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    video = np.stack([frame, *rng.integers(0, 256, (17, 40, 40, 3), dtype=np.uint8)])
    windows = np.concatenate(list(features.resnet_windows(video)))
    assert windows.shape == (3, 16, 112, 112, 3)
    np.testing.assert_array_equal(windows[0, 1:], windows[1, :-1])
    resized = windows[0, 0, ::8, ::8] + np.array(features.KINETICS_MEAN)
    np.testing.assert_allclose(resized, EXPECTED["resized"], atol=1e-3)
    assert not list(features.i3d_windows(video[:15]))


def test_frechet_distance():
    rng = np.random.default_rng(7)
    a, b = rng.normal(size=(300, 24)), 1.3 * rng.normal(size=(200, 24)) + 0.2
    assert frechet_distance(a, b) == pytest.approx(float(EXPECTED["frechet"]), rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    few, others = a[:5], b[:6]  # fewer examples than features: the covariances are singular
    root = np.linalg.eigvals(np.cov(few, rowvar=False) @ np.cov(others, rowvar=False)).astype(complex)
    expected = (
        np.square(few.mean(0) - others.mean(0)).sum()
        + few.var(0, ddof=1).sum()
        + others.var(0, ddof=1).sum()
        - 2 * np.sqrt(root).sum().real
    )
    assert frechet_distance(few, others) == pytest.approx(expected, rel=1e-4)
    assert np.isnan(frechet_distance(a[:1], b))


def test_missing_files_are_named(folder, tmp_path, caplog):
    none = MetricNetworks(None)
    assert not any(name in none for name in NETWORKS) and not caplog.text
    (tmp_path / "vgg.pth").write_bytes((folder / "vgg.pth").read_bytes())
    assert "lpips" not in MetricNetworks(tmp_path)
    assert f"No LPIPS: vgg16-397923af.pth is not in {tmp_path}" in caplog.text
    assert "No FID-VID: resnet-50" in caplog.text


def test_files_of_other_networks_are_refused(folder, tmp_path):
    with pytest.raises(InputError, match="expected the network of fvd, found no tensor 'Conv3d_1a_7x7"):
        read_network("fvd", [folder / "vgg.pth"])
    tensors = {name: np.zeros(shape, np.float32) for name, shape in SHAPES["vgg.pth"].items()} | {"x": np.zeros(1)}
    write_torch_archive(tmp_path / "more.pth", tensors.items())
    with pytest.raises(InputError, match="no use for: x"):
        read_network("lpips", [folder / "vgg16-397923af.pth", tmp_path / "more.pth"])
