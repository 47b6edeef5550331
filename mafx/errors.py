"""The one exception for mistakes that the user can mend."""

import contextlib
from collections.abc import Iterator


class InputError(ValueError):
    """An input is not what it should be. The message is one sentence: what was expected, what was found, what to do."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether XLA says that a device, or the compiler for it, has no room."""
    return "RESOURCE_EXHAUSTED" in str(error)


@contextlib.contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """Turn a device's lack of memory into an InputError that ends with `advice`."""
    import jax  # noqa: PLC0415 (slow to import, and every command imports this module)

    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0]
        raise InputError(f"the device has too little memory ({reason}); {advice}") from error
