"""Saves and restores the state of chunks, by names that do not depend on the partition.

Names in a checkpoint begin with

- `model.` and a unit's name, or `auxiliary.` and a module's number: parameters and buffers;
- `transient.` and the name of a buffer: non-persistent buffers, and all buffers of exports;
- `optimizer.` and the name of a parameter: the optimizer's state for that parameter;
- `ema.` and a unit's name: averages of the unit's parameters and buffers;
- `watched.`, a unit's name and a number n: the unit's parameters as they were n steps ago, for
  local losses that read weights with a lag.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from ppll_cli.job.weights import Weights, read_weights
from ppll_cli.worker.networks import Networks


def tensors_of(chunks: Iterable[Networks]) -> dict[str, Tensor]:
    """Return the tensors that a checkpoint saves for these chunks, by name."""
    found: dict[str, Tensor] = {}
    for chunk in chunks:
        for prefix, network in _named_networks(chunk):
            kept = network.state_dict()
            found |= {f"{prefix}.{name}": tensor for name, tensor in kept.items()}
            for name, parameter in network.named_parameters():
                state = chunk.optimizer.state.get(parameter, {}) if chunk.optimizer else {}
                for key, value in state.items():
                    found[f"optimizer.{prefix}.{name}.{key}"] = value
        found |= {name: buffer for name, _, buffer in _transient(chunk)}
        found.update(_copies(chunk))
    return found


def restore(chunks: Iterable[Networks], saved: Mapping[str, Tensor]) -> None:
    """Load the state of chunks from a checkpoint's tensors.

    The run that saved the checkpoint may have placed the units on other stages.
    """
    by_owner: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in saved.items():
        owner, _, key = name.rpartition(".")
        by_owner[owner][key] = tensor
    for chunk in chunks:
        for prefix, network in _named_networks(chunk):
            kept = network.state_dict()
            network.load_state_dict({n: saved[f"{prefix}.{n}"] for n in kept})
            for name, parameter in network.named_parameters():
                entries = by_owner.get(f"optimizer.{prefix}.{name}", {})
                state = {key: _like(parameter, tensor) for key, tensor in entries.items()}
                if chunk.optimizer is not None:
                    chunk.optimizer.restore(parameter, state)
        for name, network, buffer in [*_transient(chunk)]:
            if name in saved:  # older checkpoints lack these buffers
                # Do not copy into the buffer: it may be a view whose elements share memory.
                _replace(network, buffer, saved[name].to(buffer.device))
        for name, copy in _copies(chunk):
            copy.copy_(saved[name])


def begin_with(chunks: Iterable[Networks], weights: Weights) -> None:
    """Load initial weights of units from a file; weights that the file lacks keep their values.

    Also set the averages and the older versions of the weights to the initial weights.
    """
    saved = read_weights(weights.file)
    for chunk in chunks:
        for unit, network in chunk.units:
            names = {n: weights.names.get(f"{unit.name}.{n}") for n in network.state_dict()}
            taken = {name: saved[key] for name, key in names.items() if key is not None}
            network.load_state_dict(taken, strict=False)
        if chunk.ema is not None:
            chunk.ema.begin()
        for versions in chunk.versions.values():
            versions.begin()


def _named_networks(chunk: Networks) -> Iterator[tuple[str, nn.Module]]:
    for unit, network in chunk.units:
        yield f"model.{unit.name}", network
    if chunk.criterion is not None:
        yield f"auxiliary.{chunk.place.module}", chunk.criterion


def _transient(chunk: Networks) -> Iterator[tuple[str, nn.Module, Tensor]]:
    for prefix, network in _named_networks(chunk):
        kept = network.state_dict()
        for name, buffer in network.named_buffers():
            if name not in kept:
                yield f"transient.{prefix}.{name}", network, buffer
    for unit, network in chunk.exports:  # `_named_networks` has no exports
        for name, buffer in network.named_buffers():
            yield f"transient.export.{unit.name}.{name}", network, buffer


def _copies(chunk: Networks) -> Iterator[tuple[str, Tensor]]:
    if chunk.ema is not None:
        yield from chunk.ema.saved()
    for versions in chunk.versions.values():
        yield from versions.saved()


def _replace(network: nn.Module, buffer: Tensor, by: Tensor) -> None:
    for name, each in [*network.named_buffers(remove_duplicate=False)]:  # submodules may share it
        if each is buffer:
            place, _, last = name.rpartition(".")
            network.get_submodule(place).register_buffer(last, by, persistent=False)


def _like(parameter: Tensor, saved: Tensor) -> Tensor:
    if saved.shape != parameter.shape:
        return saved.to(parameter.device)
    # `empty_like` also keeps the memory format of the parameter.
    return torch.empty_like(parameter, dtype=saved.dtype, requires_grad=False).copy_(saved)
