"""Files that are broken or hostile: every reader refuses them in one line that names the file, quickly and in little
memory. `python -m mafx.benchmarks.fuzz` looks for more of them; what it finds is kept here."""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mafx.bundled import FOLDER
from mafx.bundled.release import joined_logs
from mafx.data.builders import Report
from mafx.data.clips import PuppetClip
from mafx.data.latents import LatentClip
from mafx.data.raw import Raw, find_raw
from mafx.data.staging import stage
from mafx.errors import InputError
from mafx.evaluation.protocol import frechet_distances, read_metrics
from mafx.models.text import TextConfig, Tokenizer
from mafx.pretrained.configs import APPEARANCE, AUTOENCODER, CONTROL, INFERENCE, TEXT, UNET, read_configs
from mafx.training.runs import read_config

WEIGHTS = Path(__file__).parent / "published" / "weights"
UNETS = (UNET, CONTROL, APPEARANCE)
DEEP = [1]
for _ in range(200):
    DEEP = [DEEP]


def refused(read, *args, match=None):
    """Reading raises an InputError of one line."""
    with pytest.raises(InputError, match=match) as caught:
        read(*args)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 2000, message


# -- JSON


@pytest.fixture
def configs(tmp_path):
    """The JSON files of a folder of weights."""
    for path in WEIGHTS.rglob("*.json"):
        target = tmp_path / path.relative_to(WEIGHTS)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    read_configs(tmp_path)
    return tmp_path


def change(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("folders", "changes"),
    [
        (UNETS, {"block_out_channels": [32] * 49}),
        (UNETS, {"block_out_channels": [32, 10**9]}),
        (UNETS, {"block_out_channels": [32, "32"]}),
        (UNETS, {"block_out_channels": [33, 33]}),
        (UNETS, {"block_out_channels": []}),
        (UNETS, {"block_out_channels": None}),
        (UNETS, {"block_out_channels": DEEP}),
        (UNETS, {"down_block_types": [1, 2]}),
        (UNETS, {"down_block_types": "Cross"}),
        (UNETS, {"down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": None}),
        (UNETS, {"up_block_types": 7}),
        (UNETS, {"layers_per_block": 10**9}),
        (UNETS, {"layers_per_block": 0}),
        (UNETS, {"layers_per_block": 1.5}),
        (UNETS, {"attention_head_dim": 0}),
        (UNETS, {"attention_head_dim": -2}),
        (UNETS, {"attention_head_dim": 7}),
        (UNETS, {"attention_head_dim": "8"}),
        (UNETS, {"attention_head_dim": None}),
        (UNETS, {"num_attention_heads": {"a": 1}}),
        (UNETS, {"norm_num_groups": 0}),
        (UNETS, {"norm_eps": float("nan")}),
        (UNETS, {"norm_eps": -1}),
        (UNETS, {"in_channels": True}),
        (UNETS, {"in_channels": 5}),
        (UNETS, {"cross_attention_dim": [1]}),
        (UNETS, {"position_sinusoids": "no"}),
        ((CONTROL,), {"conditioning_embedding_out_channels": [16] * 6}),
        ((CONTROL,), {"conditioning_embedding_out_channels": 16}),
        ((AUTOENCODER,), {"block_out_channels": [8] * 49}),
        ((AUTOENCODER,), {"block_out_channels": {"0": 8}}),
        ((AUTOENCODER,), {"scaling_factor": float("inf")}),
        ((AUTOENCODER,), {"scaling_factor": 0}),
        ((AUTOENCODER,), {"_class_name": "Patches"}),
        ((AUTOENCODER,), {"_class_name": "Patches", "patch_size": 0}),
        ((TEXT,), {"hidden_act": ["gelu"]}),
        ((TEXT,), {"num_hidden_layers": 10**6}),
        ((TEXT,), {"num_attention_heads": 0}),
        ((TEXT,), {"max_position_embeddings": -1}),
        ((TEXT,), {"vocab_size": 10**12}),
        ((TEXT,), {"hidden_size": 10**30}),
    ],
)
def test_sizes_are_checked_before_a_network_is_built(configs, folders, changes):
    for folder in folders:
        change(configs / folder / "config.json", **changes)
    refused(read_configs, configs)


@pytest.mark.parametrize(
    "changes",
    [
        {"unet_additional_kwargs": []},
        {"unet_additional_kwargs": {"motion_module_kwargs": 3}},
        {"unet_additional_kwargs": {"motion_module_kwargs": {"num_attention_heads": 0}}},
        {"unet_additional_kwargs": {"motion_module_kwargs": {"norm_num_groups": 7}}},
        {"unet_additional_kwargs": {"motion_module_kwargs": {"temporal_position_encoding_max_len": 10**9}}},
        {"noise_scheduler_kwargs": None},
        {"noise_scheduler_kwargs": {"beta_start": "0.1"}},
        {"noise_scheduler_kwargs": {"beta_start": 0.5, "beta_end": 0.1}},
        {"noise_scheduler_kwargs": {"beta_schedule": ["linear"]}},
        {"noise_scheduler_kwargs": {"prediction_type": {}}},
        {"noise_scheduler_kwargs": {"rescale_betas_zero_snr": True}},
        {"fusion": ["midup"]},
        {"size": [1e3, 1e3]},
        {"size": [True, True]},
    ],
)
def test_settings_of_the_whole_are_checked(configs, changes):
    change(configs / INFERENCE, **changes)
    refused(read_configs, configs, match="inference_config|do not fit together")


WORDS = ["a", "b", "ab", "<|startoftext|>", "<|endoftext|>"]


@pytest.mark.parametrize(
    ("vocabulary", "merges"),
    [
        ("[]", "a b"),
        ('{"a": 0}', ""),
        (json.dumps({word: i * 1000 for i, word in enumerate(WORDS)}), "a b"),
        (json.dumps({word: -i for i, word in enumerate(WORDS)}), "a b"),
        (json.dumps({word: str(i) for i, word in enumerate(WORDS)}), "a b"),
        (json.dumps({word: i for i, word in enumerate(WORDS)}), "a b c"),
        (json.dumps({word: i for i, word in enumerate(WORDS)}), "a"),
        (json.dumps({word: i for i, word in enumerate(WORDS)}), "a z"),
        (json.dumps({word: i for i, word in enumerate(WORDS)}), "b a"),
        (json.dumps({word: i for i, word in enumerate(WORDS)}).replace("ab", "\\ud800"), ""),
    ],
)
def test_vocabularies(tmp_path, vocabulary, merges):
    (tmp_path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(WORDS)}))
    (tmp_path / "merges.txt").write_text("a b\n")
    config = TextConfig(vocabulary=100)
    assert Tokenizer.from_directory(tmp_path, config)("")[:2].tolist() == [3, 4]
    (tmp_path / "vocab.json").write_text(vocabulary)
    (tmp_path / "merges.txt").write_text(merges)
    refused(Tokenizer.from_directory, tmp_path, config)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "huge"},
        {"model": ["tiny"]},
        {"remat": {}},
        {"networks": {"fusion": "all"}},
        {"networks": {"fusio": "midup"}},
        {"networks": []},
        {"schedule": {"kind": "linear", "predictions": "v"}},
        {"schedule": {"kind": "cosine"}},
        {"schedule": {"beta_start": -1.0}},
        {"schedule": {"zero_terminal_snr": 1}},
        {"data": None},
        {"data": {"name": "puppets", "size": "32"}},
        {"data": {"name": "puppets", "size": [0, 32]}},
        {"data": {"name": "puppets", "size": [32, 32], "test_clips": -1}},
        {"show_guidance": "2"},
        {"show_guidance": float("nan")},
        {"extra": DEEP},
    ],
)
def test_configs_of_runs(tmp_path, changes):
    path = tmp_path / "config.json"
    shutil.copy(FOLDER / "config.json", path)
    assert read_config(tmp_path).model == "puppets"
    change(path, **changes)
    refused(read_config, tmp_path, match="config.json")


@pytest.mark.parametrize(
    "changes",
    [
        {"clips": []},
        {"clips": {"a": {}}},
        {"clips": {"a": {"result": {"psnr": "20"}}}},
        {"mean": {"result": {"psnr": [1, 2]}}},
        {"mean": 3},
        {"settings": None},
    ],
)
def test_evaluations(tmp_path, changes):
    mean = {"result": {"psnr": [20.0, float("nan"), float("nan")]}}
    content = {"settings": {}, "mean": mean, "clips": {"a": {"result": {"psnr": 20.0}}}}
    (tmp_path / "metrics.json").write_text(json.dumps(content))
    assert read_metrics(tmp_path)["clips"] == content["clips"]
    change(tmp_path / "metrics.json", **changes)
    refused(read_metrics, tmp_path, match="metrics.json")


@pytest.mark.parametrize(
    "arrays", [{"result": np.ones((2, 2))}, {"result/fid": np.ones(2)}, {"result/fid": np.full((2, 2), np.nan)}]
)
def test_features(tmp_path, arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    refused(frechet_distances, [tmp_path / "a.npz"], match="a.npz")


@pytest.mark.parametrize("line", ['{"step": 1, "loss": "x"}', "[1]", "{", "\0", ""])
def test_logs(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n')
    refused(joined_logs, [tmp_path], match="metrics.jsonl, line 2")


@pytest.mark.parametrize(
    "changes",
    [
        {"clips": {"test": ["../../out"]}},
        {"clips": {"test": ["/tmp/out"]}},
        {"clips": {"test": ["a\nb"]}},
        {"clips": {"test": [1]}},
        {"clips": ["a"]},
        {"left_out": [{"clip": "a"}]},
        {"left_out": [1]},
        {"min_frames": "16"},
    ],
)
def test_reports(tmp_path, changes):
    Report(16, {"test": ["a"]}, []).write(tmp_path)
    assert Report.read(tmp_path) == Report(16, {"test": ["a"]}, [])
    change(tmp_path / "report.json", **changes)
    refused(Report.read, tmp_path, match="report.json")


def test_names_of_several_lines(tmp_path):
    (tmp_path / "a\nb" / "images").mkdir(parents=True)
    refused(find_raw, tmp_path, match="name without folders and of one line")


@pytest.mark.parametrize("index", ["{", "[]", '{"fingerprint": 1}', '{"fingerprint": "", "kept": 1, "left_out": []}'])
def test_checked_clips_are_checked_anew(tmp_path, index):
    """A zip that cannot be read is replaced, as one of other files is."""
    raw = Raw("a", "pictures", {}, {})
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("clip.json", index)
    assert stage(raw, tmp_path / "a.zip").kept == []
    (tmp_path / "a.zip").write_bytes(b"PK")
    assert stage(raw, tmp_path / "a.zip").kept == []


# -- Arrays


@pytest.mark.parametrize(
    "latents", [np.full((4, 2, 2, 4), np.nan, np.float16), np.ones((2, 2, 2, 4), np.float16), np.ones((4, 2, 2, 4))]
)
def test_latents(tmp_path, latents):
    clip = LatentClip(PuppetClip(0, 0, (16, 16), frames=4), tmp_path / "a.npy")
    np.save(clip.path, np.ones((4, 2, 2, 4), np.float16))
    assert clip.read(np.array([3]))[0].shape == (1, 2, 2, 4)
    np.save(clip.path, latents)
    refused(clip.read, np.array([3]), match="a.npy")
