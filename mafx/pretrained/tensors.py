"""What all files of named tensors share: how they are read, and what is asked of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np

from mafx.errors import InputError
from mafx.files import Range

MAX_AXES = 8  # of a tensor
LONGEST_NAME = 500  # of a tensor
STATE_KEYS = ("state_dict", "model")  # under which a file may keep its tensors; the second is detectron2's
Natural = Annotated[int, Range(0)]
Shape = Annotated[tuple[Natural, ...], Range(0, MAX_AXES)]


class TensorFile(Protocol):
    """An open file of named tensors.

    Attributes:
      path: The file.
      shapes: Names of the tensors and their shapes.
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]

    def read(self, name: str) -> np.ndarray:
        """Read one tensor in its own dtype.

        Raises:
          InputError: The file is damaged at this tensor, or the tensor is not what the file claims.
        """
        ...


def check_tensor_name(path: Path, name: str) -> None:
    """Check that a name fits into a line."""
    if not (name.isprintable() and 0 < len(name) <= LONGEST_NAME):
        raise InputError(f"{path}: expected names of tensors of one line, found {ascii(name)[:LONGEST_NAME]}")


def tensors_of(path: Path, content: object, kind: type) -> dict[str, Any]:
    """The tensors of a state dict, by name; all else in it is left out."""
    for key in STATE_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise InputError(f"{path} was refused: expected a dict of tensors, found {type(content).__name__}")
    tensors = {name: x for name, x in content.items() if isinstance(x, kind)}
    for name in tensors:
        check_tensor_name(path, name)
    return tensors
