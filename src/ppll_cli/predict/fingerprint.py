"""Texts that are equal for what can be measured once."""

import hashlib
import inspect
import re
from pathlib import Path

from torch import nn


def structure(network: nn.Module) -> str:
    """What two networks have in common that compute alike: layers, options and shapes.

    Weights do not count, nor does where in memory something stands.
    """
    lines = []
    for name, layer in network.named_modules():
        options = {k: v for k, v in vars(layer).items() if k[0] != "_" and k != "training"}
        own = (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False))
        shapes = [(key, tuple(tensor.shape), tensor.dtype) for key, tensor in own]
        lines.append(f"{name}: {type(layer)} {options} {shapes}")
    return re.sub(r" at 0x[0-9a-f]+", "", "\n".join(lines))


def digest(*parts: object) -> str:
    """Few characters for what prints alike."""
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:16]


def source_digest(*targets: object) -> str:
    """A hash of the files in which classes stand: what is measured depends on them."""
    files = [inspect.getsourcefile(type(target)) for target in targets]
    return digest(*(Path(file).read_text() for file in files if file is not None))
