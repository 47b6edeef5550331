import jax.numpy as jnp
import numpy as np
from micro import MICRO

from mafx.models.autoencoder import Autoencoder, AutoencoderConfig


def test_sizes(micro, rng):
    networks, params = Autoencoder(MICRO.autoencoder), {"params": micro.params["autoencoder"]}
    image = jnp.asarray(rng.uniform(-1, 1, (2, 12, 6, 3)), jnp.float32)
    mean, logvar = networks.apply(params, image, method="encode")
    assert mean.shape == logvar.shape == (2, 6, 3, 4)
    assert networks.apply(params, mean, method="decode").shape == image.shape
    assert AutoencoderConfig().factor == 8


def test_log_variance_is_clipped(micro):
    params = dict(micro.params["autoencoder"])
    params["quant_conv"] = {"kernel": jnp.zeros((8, 8)), "bias": jnp.array([0.0] * 4 + [-100, 100, 1, 2])}
    _, logvar = Autoencoder(MICRO.autoencoder).apply({"params": params}, jnp.zeros((1, 2, 2, 3)), method="encode")
    np.testing.assert_array_equal(logvar[0, 0, 0], [-30, 20, 1, 2])
