"""Reads the trained model from a checkpoint, and writes it to a separate safetensors file."""

from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from ppll_cli.job.checkpoint import EMA, saved_tensors
from ppll_cli.job.manifest import check_files, read_manifest
from ppll_cli.leaves.files import write_bytes


def has_ema(checkpoint: Path) -> bool:
    """Return whether a checkpoint holds averaged weights."""
    tensors, _ = saved_tensors(checkpoint)
    return any(name.startswith(EMA) for name in tensors)


def model_tensors(checkpoint: Path, ema: bool = False) -> dict[str, Tensor]:
    """Read the model's parameters and buffers, named by unit, without auxiliary networks.

    If `ema` is true, the averages of floating-point tensors replace these tensors. Other tensors
    have no averages.
    """
    prefixes = ("model.", EMA) if ema else ("model.",)  # an average replaces the weight itself
    tensors, _ = saved_tensors(checkpoint)
    return {n.removeprefix(p): t for p in prefixes for n, t in tensors.items() if n.startswith(p)}


def write_model(checkpoint: Path, path: Path, ema: bool = False) -> None:
    """Write the `model_tensors` of a checkpoint to a file.

    Raises:
        DamagedError: The files of the checkpoint do not match its manifest.
        LaterFormatError: A newer program wrote the manifest.
        OSError, SafetensorError: A file cannot be read, or the model cannot be written.
    """
    check_files(checkpoint, read_manifest(checkpoint))
    write_bytes(path, save(model_tensors(checkpoint, ema)))
