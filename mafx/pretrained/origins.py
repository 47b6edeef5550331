"""Where the published files come from: a table with the repository or the address of each, and where it goes.

Names are those that mafx reads, see `mafx.pretrained.layout` and `mafx.evaluation.features`. Files of the Hugging Face
hub have their sizes and checksums there. The others have them here, where they are published:

- torchvision (https://docs.pytorch.org/docs/stable/model_zoo.html): a name ends with the first digits of the SHA-256.
- pytorch-fid's file is named in the same way.
- The package `lpips` 0.1.4 has the same `vgg.pth`, whose SHA-256 was computed from it.
"""

import dataclasses

ANIMATION, DENSEPOSE, METRICS, POSE = "animation", "densepose", "metrics", "pose"
OPTIONAL = (DENSEPOSE, METRICS, POSE)


@dataclasses.dataclass(frozen=True)
class Origin:
    """A published file.

    Attributes:
      group: What it is for: a word of those above.
      place: Where it goes in the folder of weights.
      repository: On the Hugging Face hub; empty for files that are not there.
      name: Its path in the repository, or its URL.
      licence: As its authors say, in a few words.
      size: In bytes, None where it is asked for.
      sha256: The first digits of its checksum, or all; empty where it is asked for, or not published.
    """

    group: str
    place: str
    repository: str
    name: str
    licence: str
    size: int | None = None
    sha256: str = ""


def _on_hub(repository: str, folder: str, licence: str, *names: str) -> tuple[Origin, ...]:
    return tuple(Origin(ANIMATION, f"{folder}/{name}", repository, name, licence) for name in names)


WEIGHTS = "diffusion_pytorch_model.safetensors"
DENSEPOSE_PLACE = f"{DENSEPOSE}/model_final_162be9.pkl"

ORIGINS = (
    *_on_hub(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",  # a mirror of runwayml's, which is gone
        "stable-diffusion-v1-5",
        "CreativeML OpenRAIL-M",
        *("unet/config.json", f"unet/{WEIGHTS}", "text_encoder/config.json", "text_encoder/model.safetensors"),
        *("tokenizer/vocab.json", "tokenizer/merges.txt"),
    ),
    *_on_hub("stabilityai/sd-vae-ft-mse", "sd-vae-ft-mse", "MIT", "config.json", WEIGHTS),
    *_on_hub(
        "zcxu-eric/MagicAnimate",
        "MagicAnimate",
        "BSD-3-Clause, and CreativeML OpenRAIL-M",  # of its code, and of what it was trained from
        *("appearance_encoder/config.json", f"appearance_encoder/{WEIGHTS}"),
        *("densepose_controlnet/config.json", f"densepose_controlnet/{WEIGHTS}"),
        "temporal_attention/temporal_attention.ckpt",
    ),
    Origin(
        DENSEPOSE,
        DENSEPOSE_PLACE,
        "",
        "https://dl.fbaipublicfiles.com/densepose/densepose_rcnn_R_50_FPN_s1x/165712039/model_final_162be9.pkl",
        "Apache-2.0",
    ),
    Origin(
        METRICS,
        f"{METRICS}/vgg16-397923af.pth",
        "",
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        "BSD-3-Clause",
        553_433_881,
        "397923af",
    ),
    Origin(
        METRICS,
        f"{METRICS}/vgg.pth",
        "",
        "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1/vgg.pth",
        "BSD-2-Clause",
        7_289,
        "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
    ),
    Origin(
        METRICS,
        f"{METRICS}/pt_inception-2015-12-05-6726825d.pth",
        "",
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
        "Apache-2.0",
        95_628_359,
        "6726825d",
    ),
    Origin(
        METRICS,
        f"{METRICS}/i3d_pretrained_400.pt",
        "",  # VideoGPT's own address is gone
        "https://github.com/bytedance/pv3d/releases/download/v1.0.0/i3d_pretrained_400.pt",
        "MIT",
    ),
)
# What lies only where a browser is needed: the file, and the page.
BY_HAND = {
    f"{METRICS}/resnet-50-kinetics.pth": "https://drive.google.com/drive/folders/14KRBqT8ySfPtFSuLsFS2U4I-ihTDs0Y9",
}
