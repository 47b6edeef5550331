"""The one exception for things the user can mend."""


class InputError(ValueError):
    """An input is not what it should be. The message is one sentence: what was expected, what was found, what to do."""
