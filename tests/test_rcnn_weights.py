import json
import os

import flax
import numpy as np
import pytest
from rcnn_fixtures import SMALL, load_set, published_tensors, shared_file, write_pickle

from mafx.densepose.rcnn import RCNNConfig
from mafx.densepose.rcnn_weights import CONSTANTS, find_config, load_rcnn, parameter_shapes, sources
from mafx.errors import InputError
from mafx.pretrained.torch_files import write_torch_archive

VARIANTS = {
    "densepose_rcnn_R_50_FPN_s1x": RCNNConfig(),
    "densepose_rcnn_R_101_FPN_s1x": RCNNConfig(blocks=(3, 4, 23, 3)),
    "densepose_rcnn_R_50_FPN_DL_s1x": RCNNConfig(deeplab=True),
    "densepose_rcnn_R_101_FPN_DL_s1x": RCNNConfig(blocks=(3, 4, 23, 3), deeplab=True),
    "densepose_rcnn_R_50_FPN_s1x_legacy": RCNNConfig(decoder=None, coarse=15),
}


def published_shapes(config):
    return {
        name: shape
        for path, leaf in parameter_shapes(config).items()
        for name, shape in sources(path, leaf.shape).items()
    }


@pytest.mark.parametrize("name", VARIANTS)
def test_names_and_shapes_are_those_of_the_published_files(name):
    entry = json.loads(shared_file("published_shapes.json").read_text())[name]
    expected = {key: tuple(shape) for key, shape in entry["shapes"].items()}
    assert published_shapes(VARIANTS[name]) == expected
    assert find_config(expected, name) == VARIANTS[name]


def test_the_number_of_parameters():
    """Of the published R_50_FPN_s1x: 63,927,330 without what is computed from a configuration."""
    assert sum(np.prod(shape) for shape in published_shapes(RCNNConfig()).values()) == 63_927_330


def flat(rcnn):
    return flax.traverse_util.flatten_dict(rcnn.params, sep="/")


def test_layouts_by_hand(tmp_path):
    tensors = published_tensors()
    rcnn = load_rcnn(write_pickle(tmp_path / "a.pkl", tensors))
    assert rcnn.config == SMALL
    leaves = flat(rcnn)
    norm = {key: tensors[f"backbone.bottom_up.stem.conv1.norm.{key}"].astype(float) for key in NORM}
    scale = norm["weight"] / np.sqrt(norm["running_var"] + 1e-5)
    kernel = tensors["backbone.bottom_up.stem.conv1.weight"]
    got = leaves["backbone.bottom_up/stem.conv1/kernel"]
    np.testing.assert_allclose(got[2, 3, 1], scale * kernel[:, 1, 2, 3], rtol=1e-6)
    got = leaves["backbone.bottom_up/stem.conv1/bias"]
    np.testing.assert_allclose(got, norm["bias"] - scale * norm["running_mean"], rtol=1e-5, atol=1e-7)
    first = tensors["roi_heads.box_head.fc1.weight"].reshape(-1, SMALL.pyramid, 7, 7)
    np.testing.assert_array_equal(leaves["roi_heads.box_head/fc1/kernel"][5, 6, 3], first[:, 3, 5, 6])
    fine = tensors["roi_heads.densepose_predictor.index_uv_lowres.weight"]
    got = leaves["roi_heads.densepose_predictor/index_uv_lowres/kernel"]
    np.testing.assert_array_equal(got[1, 2, 3, 4], fine[3, 4, 1, 2])


NORM = ("weight", "bias", "running_mean", "running_var")


def test_files_with_and_without_constants_and_of_all_formats_give_the_same(tmp_path):
    tensors = published_tensors()
    expected = flat(load_rcnn(write_pickle(tmp_path / "a.pkl", tensors)))
    write_torch_archive(tmp_path / "a.pth", tensors.items(), training=False)
    for path in (write_pickle(tmp_path / "b.pkl", tensors | CONSTANTS), tmp_path / "a.pth"):
        got = flat(load_rcnn(path))
        assert got.keys() == expected.keys()
        assert all((np.asarray(got[name]) == np.asarray(x)).all() for name, x in expected.items())
    assert all(x.dtype == "bfloat16" for x in flat(load_rcnn(tmp_path / "a.pkl", "bf16")).values())


def test_files_of_the_published_code_give_the_same():
    expected, got = flat(load_set("tiny").rcnn), flat(load_rcnn(shared_file("tiny/model_final.pth")))
    assert got.keys() == expected.keys()
    assert all((np.asarray(got[name]) == np.asarray(x)).all() for name, x in expected.items())


def changed(tensors, name, x):
    return {key: value for key, value in (tensors | {name: x}).items() if value is not None}


@pytest.mark.parametrize(
    ("name", "x", "match"),
    [
        ("backbone.fpn_output3.bias", None, r"backbone.fpn_output3.bias \(32,\) is missing"),
        ("backbone.bottom_up.res3.0.conv2.norm.running_var", None, "res3.0.conv2.norm.running_var .* is missing"),
        ("roi_heads.mask_head.weight", np.zeros(3, np.float32), r"mask_head.weight \(3,\) is not a tensor of this"),
        (
            "backbone.bottom_up.res2.0.conv1.norm.num_batches_tracked",
            np.zeros(1, np.int64),
            "tracked .* is not a tensor",
        ),
        ("roi_heads.box_head.fc2.bias", np.zeros(7, np.float32), r"fc2.bias has shape \(7,\), expected \(8,\)"),
        ("backbone.bottom_up.stem.conv1.weight", None, "with a backbone.bottom_up.stem.conv1.weight, found none"),
        ("backbone.bottom_up.stem.conv1.weight", np.array(1, np.float32), r"stem.conv1.weight, found \(\) there"),
        ("backbone.fpn_output3.bias", np.full(32, np.nan, np.float32), "fpn_output3.bias holds NaN or infinity"),
        ("pixel_mean", np.zeros((3, 1, 1), np.float32), "pixel_mean has other values"),
        ("pixel_std", np.full((3, 1, 1), 57, np.float32), "pixel_std has other values"),
        ("pixel_std", np.ones((1, 5), np.float32), "pixel_std has other values"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, name, x, match):
    path = write_pickle(tmp_path / "a.pkl", changed(published_tensors(), name, x))
    with pytest.raises(InputError, match=match):
        load_rcnn(path)


class Hostile:
    def __reduce__(self):
        return os.system, ("touch hacked",)


def test_hostile_files_are_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_pickle(tmp_path / "a.pkl", published_tensors(), hook=Hostile())
    with pytest.raises(InputError, match="refused: it asks for (posix|nt).system"):
        load_rcnn(path)
    assert not (tmp_path / "hacked").exists()
