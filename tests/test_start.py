import jax
import jax.numpy as jnp
import numpy as np
from micro import MICRO

from mafx.models.animator import Animator, parameter_shapes
from mafx.training.start import initial_value
from mafx.trees import flatten, unflatten


def test_a_network_from_nothing_answers_zero_and_its_temporal_layers_change_nothing(rng):
    params = {
        name: jnp.asarray(initial_value(name, x.shape, 0)) for name, x in flatten(parameter_shapes(MICRO)).items()
    }
    networks, flat = Animator(MICRO), {"params": unflatten(params)}
    x, text, t = jnp.asarray(rng.normal(size=(1, 3, 4, 4, 4)), jnp.float32), jnp.ones((1, 2, 16)), jnp.array([500])
    encoded = networks.apply(flat, x, t, text, method=lambda model, *args: model.unet.encode(*args, {}))
    alone = networks.apply(flat, x[:, 1:2], t, text, method=lambda model, *args: model.unet.encode(*args, {}))
    np.testing.assert_allclose(encoded.x[:, 1:2], alone.x, atol=1e-6)
    assert not np.asarray(networks.apply(flat, x, t, text, {}, None, method="predict")).any()
    residuals = networks.apply(flat, x, t, text, jnp.ones((1, 3, 8, 8, 3)), method="residuals")
    assert not any(np.asarray(r).any() for r in jax.tree.leaves(residuals))


def test_first_values_keep_activations_in_range_and_do_not_depend_on_one_another():
    kernel = initial_value("unet/encoder/conv_in/kernel", (3, 3, 64, 100), 0)
    np.testing.assert_allclose(kernel.std(), 1 / 24, rtol=0.01)
    assert (kernel == initial_value("unet/encoder/conv_in/kernel", (3, 3, 64, 100), 0)).all()
    assert (kernel != initial_value("unet/encoder/conv_in/kernel", (3, 3, 64, 100), 1)).all()
    assert (initial_value("text/norm/scale", (4,), 0) == 1).all()
