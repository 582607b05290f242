"""Reads the file of initial weights of a run (setting `weights=`)."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor


@dataclass(frozen=True)
class Weights:
    """The tensors of a file from which a run takes initial weights.

    `names` maps the model's tensors, named as in `model.safetensors`, to their names in the file.
    All other tensors of the model are initialized from the seed.
    """

    file: Path
    names: Mapping[str, str]


class Opened(NamedTuple):
    """The tensors in an open file: their shapes by name, and a function that reads one."""

    shapes: Mapping[str, list[int]]
    read: Callable[[str], Tensor]


@contextmanager
def opened(file: Path) -> Iterator[Opened]:
    """Open a file of weights: safetensors, or a dictionary of tensors that torch.save wrote.

    If the format allows it, a tensor is read only when needed. No code in the file is executed.

    Raises:
        ValueError: The file holds something else.
        Exception: The file cannot be read; torch and safetensors raise various exceptions.
    """
    if _is_safetensors(file):
        with safe_open(file, framework="pt") as found:
            shapes = {n: list(found.get_slice(n).get_shape()) for n in found.keys()}  # noqa: SIM118
            yield Opened(shapes, found.get_tensor)
        return
    tensors = _saved_by_torch(file)
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    yield Opened(shapes, tensors.__getitem__)


def _is_safetensors(file: Path) -> bool:
    """Return whether a file starts like safetensors: 8 bytes for a length, then `{` of JSON."""
    with file.open("rb") as content:
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
        raise ValueError("it holds something other than tensors") from None
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise ValueError("it is not a dictionary of tensors, such as model.state_dict()")
    return {str(name): tensor for name, tensor in found.items()}
