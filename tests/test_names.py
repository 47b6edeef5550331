import numpy as np
import pytest

from mafx.pretrained.names import current_name, from_published, published_name, published_shape, to_published

EXAMPLES = [
    ("unet/encoder/time_embedding/linear_1/kernel", "time_embedding.linear_1.weight"),
    ("unet/encoder/down_blocks_0/resnets_1/conv_shortcut/bias", "down_blocks.0.resnets.1.conv_shortcut.bias"),
    ("unet/decoder/mid_block/attentions_0/transformer_blocks_0/attn1/to_out/kernel",
     "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0.weight"),
    ("appearance/decoder/up_blocks_3/attentions_2/transformer_blocks_0/norm1/scale",
     "up_blocks.3.attentions.2.transformer_blocks.0.norm1.weight"),
    ("unet/decoder/up_blocks_0/motion_modules_2/transformer_blocks_0/ff/proj_in/bias",
     "up_blocks.0.motion_modules.2.temporal_transformer.transformer_blocks.0.ff.net.0.proj.bias"),
    ("unet/encoder/down_blocks_3/motion_modules_0/transformer_blocks_0/attention_blocks_1/pe",
     "down_blocks.3.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.1.pos_encoder.pe"),
    ("control/controlnet_cond_embedding/blocks_5/kernel", "controlnet_cond_embedding.blocks.5.weight"),
    ("control/controlnet_down_blocks_11/kernel", "controlnet_down_blocks.11.weight"),
    ("autoencoder/encoder/down_blocks_0/downsamplers_0/conv/kernel",
     "encoder.down_blocks.0.downsamplers.0.conv.weight"),
    ("autoencoder/decoder/mid_block/attentions_0/group_norm/scale", "decoder.mid_block.attentions.0.group_norm.weight"),
    ("text/token_embedding/embedding", "text_model.embeddings.token_embedding.weight"),
    ("text/layers_11/mlp_fc1/kernel", "text_model.encoder.layers.11.mlp.fc1.weight"),
    ("text/layers_0/layer_norm2/bias", "text_model.encoder.layers.0.layer_norm2.bias"),
    ("text/final_layer_norm/scale", "text_model.final_layer_norm.weight"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "name"), EXAMPLES)
def test_names(path, name):
    assert published_name(tuple(path.split("/"))) == name


def test_old_and_wrapped_names():
    assert current_name("module.unet.conv_in.weight") == "conv_in.weight"
    assert (
        current_name("encoder.mid_block.attentions.0.proj_attn.bias") == "encoder.mid_block.attentions.0.to_out.0.bias"
    )
    assert current_name("decoder.mid_block.attentions.0.query.weight") == "decoder.mid_block.attentions.0.to_q.weight"


@pytest.mark.parametrize(("path", "shape", "published"), [
    ("unet/encoder/conv_in/kernel", (3, 3, 4, 320), (320, 4, 3, 3)),
    ("unet/encoder/time_embedding/linear_1/kernel", (320, 1280), (1280, 320)),
    ("unet/encoder/down_blocks_0/attentions_0/proj_in/kernel", (320, 640), (640, 320, 1, 1)),
    ("unet/encoder/down_blocks_0/motion_modules_0/proj_in/kernel", (320, 640), (640, 320)),
    ("autoencoder/quant_conv/kernel", (8, 6), (6, 8, 1, 1)),
    ("control/controlnet_mid_block/kernel", (8, 6), (6, 8, 1, 1)),
    ("text/token_embedding/embedding", (9, 5), (9, 5)),
    ("unet/x_0/pe", (24, 8), (1, 24, 8)),
])  # fmt: skip
def test_shapes_there_and_back(path, shape, published, rng):
    path, x = tuple(path.split("/")), rng.normal(size=shape)
    assert published_shape(path, shape) == published
    there = to_published(path, x)
    assert there.shape == published
    np.testing.assert_array_equal(from_published(path, there), x)


def test_kernels_are_transposed_not_reshaped():
    x = np.arange(6.0).reshape(2, 3)  # in, out
    np.testing.assert_array_equal(to_published(("unet", "a", "kernel"), x), x.T)
    y = np.arange(24.0).reshape(1, 2, 3, 4)  # rows, columns, in, out
    assert to_published(("unet", "a", "kernel"), y)[3, 2, 0, 1] == y[0, 1, 2, 3]
