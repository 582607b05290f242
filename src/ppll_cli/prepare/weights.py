"""Finds the tensors in a file of weights that fit a model."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppll_cli.config.weights import weights_file
from ppll_cli.errors import ConfigError
from ppll_cli.job.weights import Weights, read_weights
from ppll_cli.models.plain import PlainModel
from ppll_cli.models.torchvision_weights import COUNTER, our_name
from ppll_cli.models.unit import Unit

SHOWN = 3
"""Largest number of names that a message lists; `summary.json` lists all."""


@dataclass(frozen=True)
class FoundWeights:
    """The result of comparing a file of weights with a model.

    Attributes:
        weights: The file, and the names of its tensors that fit the model.
        sha256: SHA-256 of the file, in hexadecimal.
        missing: Names of the model's tensors that the file lacks, except BatchNorm's counters.
        unfit: A message for each tensor that has another shape in the file than in the model, or
            has integers in the file and floating-point numbers in the model.
        unused: Names in the file for which the model has no tensor.
    """

    weights: Weights
    sha256: str
    missing: Sequence[str]
    unfit: Sequence[str]
    unused: Sequence[str]

    def report(self) -> dict[str, Any]:
        """Return the result as plain data, for the run's record and summary.

        It has the file and its SHA-256, how many tensors fit, and the names of all others.
        """
        return {
            "file": str(self.weights.file),
            "sha256": self.sha256,
            "taken": len(self.weights.names),
            "missing": list(self.missing),
            "unfit": list(self.unfit),
            "unused": list(self.unused),
        }

    def told(self) -> str:
        """Return a line for the user: how many tensors fit, and which do not."""
        fit, others = len(self.weights.names), len(self.missing) + len(self.unfit)
        parts = [f"{fit} of the model's {fit + others} tensors fit"]
        for what, names in (
            ("missing", self.missing),
            ("of another form", self.unfit),
            ("not used", self.unused),
        ):
            if names:
                more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
                parts.append(f"{len(names)} {what} ({', '.join(names[:SHOWN])}{more})")
        return ", ".join(parts)


def find_weights(given: str, partial: bool, units: Sequence[Unit]) -> FoundWeights:
    """Compare a file of weights with a model.

    `given` is the path of the file, or of a run directory. `units` are the units of the model.
    Tensors may have this program's or torchvision's names. If `partial` is True, it is enough that
    one tensor fits; if it is False, the file must have all tensors of the model, and no others.

    Raises:
        ConfigError: There is no such file, it cannot be read, or it does not fit the model.
    """
    file = weights_file(given)
    try:
        there = read_weights(file)
        with file.open("rb") as content:
            sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    except Exception as error:  # safetensors, torch and the file system raise several kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        remedy = "give a safetensors file, or a state_dict that torch.save wrote"
        raise ConfigError("weights", given, f"cannot be read: {reason}", remedy) from None
    with torch.device("meta"):
        model = PlainModel(units)
    needed = model.state_dict()
    names = {key if key in needed else our_name(key): key for key in there}
    fitting = {n: key for n, key in names.items() if n in needed and _fits(there[key], needed[n])}
    found = FoundWeights(
        Weights(file, fitting),
        sha256,
        missing=[n for n in needed if n not in names and not n.endswith(COUNTER)],
        unfit=[
            f"{n} is {_form(there[key])} in the file, but {_form(needed[n])} in the model"
            for n, key in names.items()
            if n in needed and n not in fitting
        ],
        unused=[key for n, key in names.items() if n not in needed],
    )
    if not fitting:
        problem = f"nothing in it fits the model: {found.told()}"
        raise ConfigError("weights", given, problem, "give weights of the same model")
    if (found.missing or found.unfit or found.unused) and not partial:
        remedy = "weights_partial=true uses what fits, and initializes the rest from the seed"
        raise ConfigError("weights", given, f"does not fit the model: {found.told()}", remedy)
    return found


def _fits(saved: Tensor, own: Tensor) -> bool:
    # Integers are not converted to floats: in a quantised file, they must be multiplied by scales,
    # which the model does not know.
    return saved.shape == own.shape and own.is_floating_point() <= saved.is_floating_point()


def _form(tensor: Tensor) -> str:
    kind = "" if tensor.is_floating_point() else f"{tensor.dtype} "
    return f"{kind}{list(tensor.shape)}"
