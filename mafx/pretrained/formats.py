"""Files of tensors as PyTorch users keep them: safetensors, files of `torch.save`, and pickles of arrays.

All are read without PyTorch. Opening a file reads the names, shapes and dtypes of its tensors. Each tensor is then read
alone, so that loading needs the memory of one tensor beyond what the caller keeps. Only a pickle of arrays is in memory
as a whole while it is open.
"""

from pathlib import Path

from mafx.pretrained.array_pickles import ArrayPickle
from mafx.pretrained.safetensors_files import Safetensors
from mafx.pretrained.tensors import TensorFile
from mafx.pretrained.torch_files import OldTorchFile, TorchArchive, is_old_torch_file


def open_tensors(path: Path) -> TensorFile:
    """Open a file of tensors.

    Args:
      path: A `.safetensors` file, a pickle of NumPy arrays (`.pkl`), or a file that `torch.save` wrote (`.bin`,
        `.ckpt`, `.pt`, `.pth`).

    Raises:
      InputError: The file is incomplete, or could execute code.
    """
    if path.suffix == ".safetensors":
        return Safetensors(path)
    if path.suffix == ".pkl":
        return ArrayPickle(path)
    return OldTorchFile(path) if is_old_torch_file(path) else TorchArchive(path)
