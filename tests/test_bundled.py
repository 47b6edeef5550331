"""The model in the box is what it is said to be."""

import json

import jax
import numpy as np
import pytest

from mafx import load_bundled
from mafx.bundled import FOLDER, bundled_config, save_bundled
from mafx.data.datasets import find_clips
from mafx.data.examples import ExampleOptions
from mafx.evaluation.features import Networks
from mafx.evaluation.protocol import evaluate


def test_size():
    assert (FOLDER / "puppets.npz").stat().st_size <= 15e6


def test_scores_of_held_out_clips(tmp_path):
    """Of the first clips, as far from those of all as eight can be; and well above copying."""
    config, said = bundled_config(), json.loads((FOLDER / "scores.json").read_text())
    settings = {name: said["settings"][name] for name in ("steps", "guidance_scale", "seed")}
    clips = find_clips(config.data, "test")[:8]
    mean = evaluate(
        load_bundled(),
        clips,
        tmp_path,
        ExampleOptions(size=tuple(config.data.size), stride=said["settings"]["stride"]),
        16,
        {},
        settings,
        Networks(None),
    )["mean"]
    for answer in ("result", "copying"):
        assert mean[answer]["psnr_person"][0] == pytest.approx(said["mean"][answer]["psnr_person"][0], abs=1.5)
    assert mean["result"]["psnr_person"][0] > mean["copying"]["psnr_person"][0] + 4


def test_written_and_read_again(tmp_path):
    model = load_bundled("float16")
    save_bundled(model, bundled_config(), tmp_path)
    with np.load(tmp_path / "puppets.npz") as file:
        leaves = jax.tree_util.tree_leaves_with_path(model.params)
        assert len(file.files) == len(leaves)
        for path, x in leaves:
            np.testing.assert_array_equal(file["/".join(key.key for key in path)], x)
