"""Weights that a run begins with, in a file of whatever origin."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor


@dataclass(frozen=True)
class Weights:
    """Which tensors of a file a run begins with.

    Attributes:
        file: The file.
        names: For each tensor of the model that is taken, by its name in `model.safetensors`, its
            name in the file.
    """

    file: Path
    names: Mapping[str, str]


class OpenedWeights(Protocol):
    """The tensors of a file; each is read when it is asked for, as far as the file allows it."""

    def shapes(self) -> dict[str, list[int]]:
        """The shape of each tensor, by its name."""
        ...

    def __getitem__(self, name: str) -> Tensor: ...


class _Safetensors:
    """A file of safetensors, of which single tensors can be read."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def shapes(self) -> dict[str, list[int]]:
        return {n: list(self._file.get_slice(n).get_shape()) for n in self._file.keys()}  # noqa: SIM118

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(name)
        return tensor


class _StateDict:
    """What torch.save wrote."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def shapes(self) -> dict[str, list[int]]:
        return {name: list(tensor.shape) for name, tensor in self._tensors.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]


@contextmanager
def opened(file: Path) -> Iterator[OpenedWeights]:
    """A file of weights: safetensors, or a dictionary of tensors that torch.save wrote.

    Of the latter nothing is executed, and only tensors are made.

    Raises:
        ValueError: It holds something else.
        Exception: It cannot be read; torch and safetensors raise exceptions of several kinds.
    """
    if _is_safetensors(file):
        with safe_open(file, framework="pt") as found:
            yield _Safetensors(found)
        return
    yield _StateDict(_saved_by_torch(file))


def _is_safetensors(file: Path) -> bool:
    """Whether it begins as such a file does: the length of its header, and a JSON object."""
    with file.open("rb") as content:
        return content.read(9)[8:] == b"{"


def _saved_by_torch(file: Path) -> Mapping[str, Tensor]:
    try:
        try:  # mapped into memory, so that a worker reads only what it takes
            found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except (RuntimeError, ValueError):  # an old file, which cannot be mapped
            found = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception:  # of any kind; torch's messages are pages of advice
        raise ValueError("it holds something else than safetensors or tensors alone") from None
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise ValueError("it is no dictionary of tensors, as model.state_dict() is")
    return {str(name): tensor for name, tensor in found.items()}
