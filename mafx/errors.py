"""The one exception for things the user can mend."""

import contextlib
from collections.abc import Iterator

import jax


class InputError(ValueError):
    """An input is not what it should be. The message is one sentence: what was expected, what was found, what to do."""


def out_of_memory(error: jax.errors.JaxRuntimeError) -> bool:
    """Whether a device, or the compiler for it, has no room."""
    return "RESOURCE_EXHAUSTED" in str(error)


@contextlib.contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """An InputError with advice, where a device runs out of memory."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not out_of_memory(error):
            raise
        raise InputError(f"the device has too little memory ({str(error).splitlines()[0]}); {advice}") from error
