"""The PyTorch step that ours is timed beside does the published arithmetic: published weights, published outputs."""

import functools

import pytest
from safetensors.numpy import load_file

from mafx.models.animator import SIZES

torch = pytest.importorskip("torch", reason="the PyTorch reference needs torch")
pytest.importorskip("diffusers", reason="the PyTorch reference needs diffusers")
from mafx.benchmarks.published import PublishedStep  # noqa: E402 (it needs both)

LIMIT = 1e-5


@pytest.fixture(scope="module")
def step(published):
    step = PublishedStep(SIZES["tiny"])
    step.load(published)
    return step


@pytest.fixture(scope="module")
def expected(published):
    def load(name):
        arrays = load_file(published / "expected" / f"{name}.safetensors")
        return {key: torch.from_numpy(x) for key, x in arrays.items()}

    return functools.cache(load)


@pytest.mark.parametrize("case", ["c0", "c1", "c2", "c3"])
def test_unet_alone(step, expected, parity, case):
    x = expected("unet_plain")
    output = step.unet(x[f"{case}.sample"], x[f"{case}.timestep"], x[f"{case}.encoder_hidden_states"])
    parity.check(f"reference unet plain {case}", output, x[f"{case}.output"], LIMIT)


@pytest.mark.parametrize("left_out", ["", "bank", "control"])
def test_unet_with_bank_and_residuals(step, expected, parity, left_out):
    x = expected("unet_full")
    bank = {name.removeprefix("bank."): y for name, y in x.items() if name.startswith("bank.")}
    skips = tuple(x[f"down.{i}"][0].movedim(1, 0) for i in range(12))
    residuals = skips, x["mid"][0].movedim(1, 0)
    output = step.unet(
        torch.cat([x["latents"]] * 2),
        x["timestep"],
        x["encoder_hidden_states"],
        None if left_out == "bank" else bank,
        None if left_out == "control" else residuals,
    )
    name = f"noise_pred_no_{left_out}" if left_out else "noise_pred"
    parity.check(f"reference unet {name}", output, x[name], LIMIT)


@pytest.mark.parametrize("size", ["", "alt."])
def test_appearance(step, expected, parity, size):
    x = expected("appearance")
    reference = torch.cat([x[f"{size}ref_latents"]] * 2)
    bank = step.appearance(reference, x[f"{size}timestep"], x[f"{size}encoder_hidden_states"])
    assert {f"{size}bank.{name}" for name in bank} == {name for name in x if name.startswith(f"{size}bank.")}
    for name, tokens in bank.items():
        parity.check(f"reference bank {size}{name}", tokens, x[f"{size}bank.{name}"], LIMIT)


@pytest.mark.parametrize("size", ["", "alt."])
def test_control(step, expected, parity, size):
    x = expected("controlnet")
    noisy, text = x[f"{size}sample"].movedim(0, 1)[None], x[f"{size}encoder_hidden_states"][:1]
    skips, middle = step.control(noisy, x[f"{size}timestep"], text, x[f"{size}controlnet_cond"])
    for i, skip in enumerate(skips):
        parity.check(f"reference control {size}down.{i}", skip, x[f"{size}scale1.down.{i}"], LIMIT)
    parity.check(f"reference control {size}mid", middle, x[f"{size}scale1.mid"], LIMIT)


@pytest.mark.parametrize("size", ["", "alt."])
def test_decode(step, expected, parity, size):
    x = expected("vae")
    output = step.decode(x[f"{size}latent"] * step.config.autoencoder.scaling)
    parity.check(f"reference decode {size}", output, x[f"{size}decoded"], LIMIT)


def test_guided_step(step, expected, parity):
    x = {name.removeprefix("case_a."): y for name, y in expected("pipeline").items() if name.startswith("case_a.")}
    step.text = x["text_embeddings"]
    motion = (x["pose"].movedim(-1, 1) / 255).float()
    output = step.step(x["noise"], x["timesteps"][:1], motion, x["ref_latents"], guidance=7.5)
    parity.check("reference guided step", output, x["first.noise_pred_guided"], 5 * LIMIT)
