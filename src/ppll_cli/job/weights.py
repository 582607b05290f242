"""Reads the file of initial weights of a run (setting `weights=`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor


@dataclass(frozen=True)
class Weights:
    """The tensors of a file from which a run takes initial weights.

    `names` maps the model's tensors, named as in `model.safetensors`, to their names in the file.
    All other tensors of the model are initialized from the seed.
    """

    file: Path
    names: Mapping[str, str]


def read_weights(file: Path) -> Mapping[str, Tensor]:
    """Return the tensors of a file by name, on the CPU.

    The file has the format safetensors, or torch.save wrote a dictionary to it. No code in the file
    is executed.

    Raises:
        OSError: The file cannot be read.
        SafetensorError: The file begins like a safetensors file, but is damaged.
        ValueError: The file is damaged in another way, or holds something else.
    """
    return load_file(file) if _is_safetensors(file) else _saved_by_torch(file)


def _is_safetensors(file: Path) -> bool:
    with file.open("rb") as content:  # such a file has 8 bytes for a length, then JSON
        return content.read(9)[8:] == b"{"


def _saved_by_torch(file: Path) -> Mapping[str, Tensor]:
    try:
        try:  # map the file into memory, so that a worker reads only the tensors it takes
            found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except (RuntimeError, ValueError):  # torch's old format cannot be mapped
            found = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception:  # torch raises many kinds of exceptions, with very long messages
        raise ValueError("it is damaged, or holds something other than tensors") from None
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise ValueError("it is not a dictionary of tensors, such as model.state_dict()")
    return {str(name): tensor for name, tensor in found.items()}
