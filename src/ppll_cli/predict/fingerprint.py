"""Makes texts that identify networks. Networks with equal texts are measured once."""

import hashlib
import inspect
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from ppll_cli.job.ends import Ends


def structure(network: nn.Module) -> str:
    """Return a text with a network's layers, options and tensors.

    The text says which tensors are trained; it does not contain the tensors' values. Networks with
    equal texts take the same time and memory.
    """
    lines = []
    for name, layer in network.named_modules():
        options = {k: v for k, v in vars(layer).items() if k[0] != "_" and k != "training"}
        own = (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False))
        shapes = [(key, tuple(t.shape), t.dtype, t.requires_grad) for key, t in own]
        lines.append(f"{name}: {type(layer)} {options} {shapes}")
    return re.sub(r" at 0x[0-9a-f]+", "", "\n".join(lines))


def unit_kinds(ends: Ends) -> list[str]:
    """Return a text for each unit. Units with equal texts take the same time and memory."""
    kinds = []
    for unit, made, specs in zip(ends.site.units, ends.traced, ends.before, strict=True):
        with torch.device("meta"):
            network = unit.build()
        reads = [(name not in ends.batch, specs[name]) for name in unit.reads]
        kinds.append(digest(structure(network), reads, made.outputs, made.cost))
    return kinds


def criterion_kind(ends: Ends, modules: Sequence[range], module: int) -> str:
    """Return a text for a module's auxiliary network. Equal texts mean equal time and memory."""
    build, specs = ends.criterion(modules, module)
    with torch.device("meta"):
        unmade = build()
    written = {name for index in modules[module] for name in ends.site.units[index].writes}
    return digest(structure(unmade), [(name in written, specs[name]) for name in unmade.reads])


def digest(*parts: object) -> str:
    """Return 16 hexadecimal digits: a hash of the parts' texts."""
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:16]


def source_digest(*targets: object) -> str:
    """Return a hash of the source files in which the classes of these objects are defined."""
    files = [inspect.getsourcefile(type(target)) for target in targets]
    return digest(*(Path(file).read_text() for file in files if file is not None))
