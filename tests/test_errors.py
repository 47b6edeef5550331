import jax
import pytest

from mafx.errors import InputError, memory_advice


def test_a_full_device_is_told_with_what_to_do():
    with (
        pytest.raises(InputError, match=r"too little memory \(RESOURCE_EXHAUSTED: .*12 bytes\); eat less"),
        memory_advice("eat less"),
    ):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 12 bytes\nand a long list")
    with pytest.raises(InputError, match="; eat more$"), memory_advice(lambda: "eat more"):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), memory_advice("eat less"):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")
