import dataclasses
import errno
import json
import logging
import os
import shutil

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mafx.bundled import load_bundled
from mafx.diffusion.schedule import Schedule
from mafx.errors import InputError
from mafx.model import Model
from mafx.models.animator import SIZES
from mafx.pretrained import layout
from mafx.pretrained.configs import PublishedConfigs, read_configs, write_configs
from mafx.pretrained.export import export, parse
from mafx.pretrained.formats import open_tensors
from mafx.pretrained.layout import load_pretrained, save_pretrained
from mafx.pretrained.safetensors_files import write_safetensors
from mafx.pretrained.torch_files import write_torch_archive

UNET = "stable-diffusion-v1-5/unet/diffusion_pytorch_model.safetensors"
CONTROL = "MagicAnimate/densepose_controlnet/diffusion_pytorch_model.safetensors"
TEMPORAL = "MagicAnimate/temporal_attention/temporal_attention.ckpt"


@pytest.fixture(scope="module")
def saved(micro, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "micro"
    save_pretrained(micro, path)
    return path


@pytest.fixture
def copy(saved, tmp_path):
    """A folder as people download it: the UNet is .safetensors there."""
    folder = shutil.copytree(saved, tmp_path / "copy")
    unet = open_tensors((folder / UNET).with_suffix(".bin"))
    write_safetensors(folder / UNET, {name: unet.read(name) for name in unet.shapes})
    (folder / UNET).with_suffix(".bin").unlink()
    return folder


def edit(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def assert_equal_trees(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_round_trip_is_bit_equal(micro, tmp_path, dtype):
    schedule = Schedule(kind="scaled_linear", prediction="sample", zero_terminal_snr=True)
    config = dataclasses.replace(
        micro.config, fusion="full", unet=dataclasses.replace(micro.config.unet, positions=True)
    )
    model = Model(config, jax.tree.map(lambda x: x.astype(dtype), micro.params), schedule=schedule)
    save_pretrained(model, tmp_path / "x")
    back = load_pretrained(tmp_path / "x", dtype)
    assert_equal_trees(back.params, model.params)
    assert (back.config, back.schedule, back.dtype) == (model.config, schedule, dtype)


def test_published_round_trip(published, published_model, tmp_path):
    """Name for name and bit for bit what the published files hold."""
    save_pretrained(published_model, tmp_path / "x")
    for path in (
        p
        for p in published.rglob("*")
        if p.suffix in (".safetensors", ".ckpt") and not {"expected", "extra"} & set(p.parts)
    ):
        written = tmp_path / "x" / path.relative_to(published)
        old, new = open_tensors(path), open_tensors(written if written.exists() else written.with_suffix(".bin"))
        assert old.shapes == new.shapes
        assert all(old.read(name).tobytes() == new.read(name).tobytes() for name in old.shapes)
    back = load_pretrained(tmp_path / "x")
    assert_equal_trees(back.params, published_model.params)
    assert (back.config, back.schedule, back.tokenizer) == (
        published_model.config,
        published_model.schedule,
        published_model.tokenizer,
    )


def test_tools_find_their_configs(saved):
    config = json.loads((saved / "stable-diffusion-v1-5/unet/config.json").read_text())
    assert config["_class_name"] == "UNet2DConditionModel"
    assert config["down_block_types"] == ["CrossAttnDownBlock2D", "DownBlock2D"]
    assert config["up_block_types"] == ["UpBlock2D", "CrossAttnUpBlock2D"]


def test_configs_of_every_size_come_back(tmp_path):
    for name, config in SIZES.items():
        configs = PublishedConfigs(config, Schedule(kind="scaled_linear"), size=(64, 96))
        write_configs(tmp_path / name, configs)
        assert read_configs(tmp_path / name) == configs


def test_whole_video_unet_in_the_temporal_file_wins(copy, micro, caplog):
    flat = flax.traverse_util.flatten_dict(micro.params)
    unet, temporal = open_tensors(copy / UNET), open_tensors(copy / TEMPORAL)
    whole = {f"module.{name}": unet.read(name) + 1 for name in unet.shapes} | {
        name: temporal.read(name) for name in temporal.shapes
    }
    write_torch_archive(copy / TEMPORAL, whole.items())
    (copy / "stamp.json").unlink()
    with caplog.at_level(logging.INFO, "mafx"):
        got = flax.traverse_util.flatten_dict(load_pretrained(copy).params)
    assert f"{len(unet.shapes)} of its tensors replace Stable Diffusion's" in caplog.text
    for path, x in flat.items():
        shift = float(path[0] == "unet" and not any("motion" in name for name in path))
        np.testing.assert_allclose(got[path], x + shift, rtol=1e-6)


def test_torch_files_and_prefixes_are_accepted(copy, micro):
    file = open_tensors(copy / UNET)
    write_torch_archive((copy / UNET).with_suffix(".bin"), [(f"unet.{name}", file.read(name)) for name in file.shapes])
    (copy / UNET).unlink()
    assert_equal_trees(load_pretrained(copy).params, micro.params)


def test_all_mismatches_are_reported_together(copy):
    def break_unet(tensors):
        tensors["conv_in.weight"] = tensors["conv_in.weight"][:, :3]
        tensors["surplus.weight"] = np.zeros(3, np.float32)

    edit(copy / UNET, break_unet)
    edit(copy / CONTROL, lambda tensors: tensors.pop("conv_in.bias"))
    with pytest.raises(InputError) as caught:
        load_pretrained(copy)
    message = str(caught.value)
    assert "conv_in.weight has shape (32, 3, 3, 3), expected (32, 4, 3, 3) for unet/encoder/conv_in/kernel" in message
    assert "surplus.weight (3,) is not a tensor of this network" in message
    assert "conv_in.bias (32,) is missing, needed for control/encoder/conv_in/bias" in message


def test_the_same_tensor_twice(copy):
    edit(copy / UNET, lambda tensors: tensors.update({"module.conv_in.bias": tensors["conv_in.bias"]}))
    with pytest.raises(InputError, match="are the same tensor"):
        load_pretrained(copy)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_damaged_numbers(copy, value):
    edit(copy / CONTROL, lambda tensors: tensors["conv_in.bias"].__setitem__(3, value))
    with pytest.raises(InputError, match="densepose_controlnet.*conv_in.bias holds NaN or infinity"):
        load_pretrained(copy)


def test_missing_files_are_all_named(copy, tmp_path):
    (copy / UNET).unlink()
    (copy / "sd-vae-ft-mse" / "config.json").unlink()
    with pytest.raises(InputError, match=r"(?s)missing:.*v1-5/unet/diffusion_pytorch_model.*sd-vae-ft-mse/config.json"):
        load_pretrained(copy)
    with pytest.raises(InputError, match="found nothing"):
        load_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize(("file", "change", "message"), [
    ("stable-diffusion-v1-5/unet", {"use_linear_projection": True}, "use_linear_projection is True"),
    ("stable-diffusion-v1-5/unet", {"attention_head_dim": [5, 10]}, "one number of attention heads"),
    ("MagicAnimate/densepose_controlnet", {"norm_num_groups": 4}, "describes another UNet"),
    ("stable-diffusion-v1-5/text_encoder", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
    ("sd-vae-ft-mse", {"block_out_channels": None}, None),
])  # fmt: skip
def test_configs_of_other_networks_are_refused(copy, file, change, message):
    path = copy / file / "config.json"
    content = json.loads(path.read_text()) | change
    if message is None:
        del content["block_out_channels"]
        message = "lacks the setting 'block_out_channels'"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        load_pretrained(copy)


@pytest.mark.parametrize("content", [
    {"size": [512]}, {"size": [0, 512]}, {"size": "512"}, {"fusion": "all"},
    {"noise_scheduler_kwargs": {"beta_schedule": "cosine"}}, {"noise_scheduler_kwargs": {"prediction_type": "noise"}},
])  # fmt: skip
def test_unknown_values_of_the_inference_config_are_refused(copy, content):
    (copy / "inference_config.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"inference_config\.json: .*expected"):
        read_configs(copy)


def test_the_size_in_pixels_is_kept(copy, micro, tmp_path):
    assert (load_pretrained(copy).size, load_pretrained(copy).source) == ((512, 512), str(copy))
    assert "size" not in json.loads((copy / "inference_config.json").read_text())  # it is the published one
    save_pretrained(dataclasses.replace(micro, size=(64, 48)), tmp_path / "x")
    assert json.loads((tmp_path / "x" / "inference_config.json").read_text())["size"] == [64, 48]
    assert load_pretrained(tmp_path / "x").size == (64, 48)


def test_the_home_folder(micro, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_pretrained(micro, "~/weights")
    assert (tmp_path / "weights" / UNET).with_suffix(".bin").is_file()
    assert load_pretrained("~/weights").source == str(tmp_path / "weights")


def test_export_of_the_bundled_model(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "mafx"):
        export(parse(["bundled", str(tmp_path / "x"), "--dtype", "float16"]))
    assert f"Wrote the bundled model (puppets) in {tmp_path / 'x'}: 15." in caplog.text
    bundled, back = load_bundled("float16"), load_pretrained(tmp_path / "x", "float16")
    assert_equal_trees(back.params, bundled.params)
    assert (back.config, back.schedule, back.size) == (bundled.config, bundled.schedule, (64, 64))


def test_a_model_without_temporal_layers_is_refused(micro, tmp_path):
    config = dataclasses.replace(micro.config, unet=dataclasses.replace(micro.config.unet, temporal=None))
    with pytest.raises(InputError, match="expected a UNet with temporal layers"):
        save_pretrained(dataclasses.replace(micro, config=config), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_broken_json(copy):
    (copy / "sd-vae-ft-mse" / "config.json").write_text("{")
    with pytest.raises(InputError, match="is not readable JSON"):
        load_pretrained(copy)


def test_saving_over_something_is_refused(micro, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="expected a new or empty folder"):
        save_pretrained(micro, tmp_path)


def test_files_are_what_the_published_loader_opens_and_colleagues_can_read(micro, tmp_path):
    """MagicAnimate opens the UNet of Stable Diffusion as diffusion_pytorch_model.bin only (models/unet.py)."""
    umask = os.umask(0o022)
    try:
        save_pretrained(micro, tmp_path / "weights")
    finally:
        os.umask(umask)
    files = {path.relative_to(tmp_path / "weights").as_posix(): path for path in (tmp_path / "weights").rglob("*.*")}
    files = {name: path for name, path in files.items() if path.is_file()}
    assert {oct(path.stat().st_mode & 0o777) for path in files.values()} == {"0o644"}
    assert "stable-diffusion-v1-5/unet/diffusion_pytorch_model.bin" in files
    assert "MagicAnimate/temporal_attention/temporal_attention.ckpt" in files
    torch = pytest.importorskip("torch", reason="reads what torch.save writes")
    unet = torch.load(files["stable-diffusion-v1-5/unet/diffusion_pytorch_model.bin"], weights_only=True)
    kernel = micro.params["unet"]["encoder"]["conv_in"]["kernel"]
    np.testing.assert_array_equal(unet["conv_in.weight"].numpy().transpose(2, 3, 1, 0), kernel)


def test_an_export_is_whole_or_absent(micro, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(layout, "write_safetensors", full)
    with pytest.raises(InputError, match="cannot write the weights into .*No space left on device"):
        save_pretrained(micro, tmp_path / "weights")
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    (tmp_path / "weights").mkdir()  # an empty folder may be there
    save_pretrained(micro, tmp_path / "weights")
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]
