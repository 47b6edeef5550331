"""The one exception for mistakes that the user can mend."""

import contextlib
import traceback
from collections.abc import Callable, Iterator

LONGEST_REASON = 300  # characters of another library's message


class InputError(ValueError):
    """An input is not what it should be. The message is one sentence: what was expected, what was found, what to do."""


@contextlib.contextmanager
def refusals(complaint: str) -> Iterator[None]:
    """Turn whatever a library raises at a file into an InputError of one line that begins with `complaint`.

    No exception is left out, because libraries do not say what they raise at broken and at hostile files.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:LONGEST_REASON] or type(error).__name__
        raise InputError(f"{complaint}: {reason}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether XLA says that a device, or the compiler for it, has no room."""
    return "RESOURCE_EXHAUSTED" in str(error)


@contextlib.contextmanager
def memory_advice(advice: str | Callable[[], str]) -> Iterator[None]:
    """Turn a device's lack of memory into an InputError that ends with `advice`, or with what it returns.

    What the interrupted functions held is let go before it is called.
    """
    import jax  # noqa: PLC0415 (slow to import, and every command imports this module)

    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0]
        traceback.clear_frames(error.__traceback__)
        advice = advice if isinstance(advice, str) else advice()
        raise InputError(f"the device has too little memory ({reason}); {advice}") from error
