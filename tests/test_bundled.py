"""The bundled model is what its README says."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mafx import InputError, load_bundled
from mafx.bundled import FOLDER, bundled_config, save_bundled
from mafx.bundled.release import joined_logs
from mafx.data.datasets import find_clips
from mafx.data.examples import ExampleOptions
from mafx.evaluation.features import MetricNetworks
from mafx.evaluation.protocol import evaluate


def test_size_of_the_file():
    assert (FOLDER / "puppets.npz").stat().st_size <= 15e6


def test_it_says_what_it_is():
    model = load_bundled()
    assert (model.size, model.source) == ((64, 64), "the bundled model (puppets)")


def test_scores_of_held_out_clips(tmp_path):
    """Of the first eight clips: close to the scores of all clips, and well above copying."""
    config, published = bundled_config(), json.loads((FOLDER / "scores.json").read_text())
    mean = evaluate(
        load_bundled(),
        find_clips(config.data, "test")[:8],
        tmp_path,
        options=ExampleOptions(size=tuple(config.data.size), stride=published["settings"]["stride"]),
        frames=16,
        settings={name: published["settings"][name] for name in ("steps", "guidance_scale", "seed")},
        networks=MetricNetworks(None),
    )["mean"]
    for answer in ("result", "copying"):
        expected = published["mean"][answer]["psnr_person"][0]
        assert mean[answer]["psnr_person"][0] == pytest.approx(expected, abs=1.5)  # eight clips differ by chance
    assert mean["result"]["psnr_person"][0] > mean["copying"]["psnr_person"][0] + 4


def test_logs_of_all_stages_are_joined(tmp_path):
    for i, stage in enumerate(("appearance", "temporal")):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "metrics.jsonl").write_text(json.dumps({"step": 50 * (i + 1), "loss": 1 / 3}) + "\n")
    assert [
        json.loads(line) for line in joined_logs([tmp_path / "appearance", tmp_path / "temporal"]).splitlines()
    ] == [
        {"step": 50, "loss": 0.3333},
        {"step": 100, "loss": 0.3333},
    ]


def test_written_and_read_again(tmp_path):
    model = load_bundled("float16")
    save_bundled(model, bundled_config(), tmp_path)
    with np.load(tmp_path / "puppets.npz") as file:
        leaves = jax.tree_util.tree_leaves_with_path(model.params)
        assert len(file.files) == len(leaves)
        for path, x in leaves:
            np.testing.assert_array_equal(file["/".join(key.key for key in path)], x)


def test_a_dtype_is_meant_by_its_names_only():
    assert load_bundled("fp16").dtype == load_bundled(jnp.float16).dtype == jnp.float16
    for dtype in ("int8", jnp.int32, "half"):
        with pytest.raises(InputError, match="expected one of the dtypes fp32, bf16, fp16, float32"):
            load_bundled(dtype)
