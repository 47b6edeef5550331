"""The PyTorch reference that benchmarks are timed beside does the published arithmetic: with the published weights, the published outputs."""

import functools
import importlib
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from mafx.models.animator import SIZES

torch = pytest.importorskip("torch", reason="the reference for benchmarks needs PyTorch")
pytest.importorskip("diffusers", reason="the reference for benchmarks needs diffusers")
sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
Reference = importlib.import_module("reference").Reference

LIMIT = 1e-5


@pytest.fixture(scope="module")
def reference(published):
    reference = Reference(SIZES["tiny"])
    reference.load(published)
    return reference


@pytest.fixture(scope="module")
def expected(published):
    def load(name):
        return {
            key: torch.from_numpy(x) for key, x in load_file(published / "expected" / f"{name}.safetensors").items()
        }

    return functools.cache(load)


@pytest.mark.parametrize("case", ["c0", "c1", "c2", "c3"])
def test_unet_alone(reference, expected, parity, case):
    x = expected("unet_plain")
    got = reference.unet(x[f"{case}.sample"], x[f"{case}.timestep"], x[f"{case}.encoder_hidden_states"])
    parity.check(f"reference unet plain {case}", got, x[f"{case}.output"], LIMIT)


@pytest.mark.parametrize("leave_out", ["", "bank", "control"])
def test_unet_with_bank_and_residuals(reference, expected, parity, leave_out):
    x = expected("unet_full")
    bank = {name.removeprefix("bank."): y for name, y in x.items() if name.startswith("bank.")}
    skips, middle = [x[f"down.{i}"][0].movedim(1, 0) for i in range(12)], x["mid"][0].movedim(1, 0)
    latents = torch.cat([x["latents"]] * 2)
    got = reference.unet(
        latents,
        x["timestep"],
        x["encoder_hidden_states"],
        None if leave_out == "bank" else bank,
        None if leave_out == "control" else (tuple(skips), middle),
    )
    name = f"noise_pred_no_{leave_out}" if leave_out else "noise_pred"
    parity.check(f"reference unet {name}", got, x[name], LIMIT)


@pytest.mark.parametrize("size", ["", "alt."])
def test_appearance(reference, expected, parity, size):
    x = expected("appearance")
    bank = reference.appearance(
        torch.cat([x[f"{size}ref_latents"]] * 2), x[f"{size}timestep"], x[f"{size}encoder_hidden_states"]
    )
    assert {f"{size}bank.{name}" for name in bank} == {name for name in x if name.startswith(f"{size}bank.")}
    for name, got in bank.items():
        parity.check(f"reference bank {size}{name}", got, x[f"{size}bank.{name}"], LIMIT)


@pytest.mark.parametrize("size", ["", "alt."])
def test_control(reference, expected, parity, size):
    x = expected("controlnet")
    noisy, text = x[f"{size}sample"].movedim(0, 1)[None], x[f"{size}encoder_hidden_states"][:1]
    skips, middle = reference.control(noisy, x[f"{size}timestep"], text, x[f"{size}controlnet_cond"])
    for i, got in enumerate(skips):
        parity.check(f"reference control {size}down.{i}", got, x[f"{size}scale1.down.{i}"], LIMIT)
    parity.check(f"reference control {size}mid", middle, x[f"{size}scale1.mid"], LIMIT)


@pytest.mark.parametrize("size", ["", "alt."])
def test_decode(reference, expected, parity, size):
    x = expected("vae")
    got = reference.decode(x[f"{size}latent"] * reference.config.autoencoder.scaling)
    parity.check(f"reference decode {size}", got, x[f"{size}decoded"], LIMIT)


def test_guided_step(reference, expected, parity):
    x = {name.removeprefix("case_a."): y for name, y in expected("pipeline").items() if name.startswith("case_a.")}
    reference.text = x["text_embeddings"]
    motion = (x["pose"].movedim(-1, 1) / 255).float()
    got = reference.step(x["noise"], x["timesteps"][:1], motion, x["ref_latents"], guidance=7.5)
    parity.check("reference guided step", got, x["first.noise_pred_guided"], 5 * LIMIT)
