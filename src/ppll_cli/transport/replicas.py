"""What the replicas of a stage do together: collective operations of torch.distributed.

Each replica is a process of its own, and the replicas of a stage are a process group of their own,
in which they make the same operations in the same order. Nobody waits for a replica that is gone
longer than it takes the launcher to see that, so there is no limit of time here.
"""

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

FOR_EVER = timedelta(days=365)


@dataclass(frozen=True)
class Meeting:
    """Where the replicas of a stage find one another.

    Attributes:
        file: A file that is not there yet, in a folder that all of them see.
        replica: Which of them this one is.
        replicas: How many there are.
        devices: The device of each.
    """

    file: str
    replica: int
    replicas: int
    devices: tuple[str, ...]

    @property
    def backend(self) -> str:
        """What carries the data: NCCL, which needs a CUDA device for each, or gloo."""
        own = len(set(self.devices)) == self.replicas
        on_cuda = all(device.startswith("cuda") for device in self.devices)
        return "nccl" if own and on_cuda and dist.is_nccl_available() else "gloo"


class Replicas:
    """The replicas of a stage, as one of them sees them.

    Args:
        meeting: Where they find one another.
    """

    def __init__(self, meeting: Meeting) -> None:
        self.replica, self.replicas = meeting.replica, meeting.replicas
        self._meeting = meeting

    def open(self) -> None:
        """Meet the others and connect to them."""
        # The machine's name may lead anywhere; they are all on this one.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
        meeting = self._meeting
        dist.init_process_group(
            meeting.backend,
            store=dist.FileStore(meeting.file, meeting.replicas),  # type: ignore[attr-defined]
            rank=meeting.replica,
            world_size=meeting.replicas,
            timeout=FOR_EVER,
        )
        device = meeting.devices[meeting.replica] if meeting.backend == "nccl" else "cpu"
        self.add(torch.zeros(1, device=device)).wait()  # connections are made on first use

    def close(self) -> None:
        """Leave them."""
        dist.destroy_process_group()

    def add(self, tensor: Tensor) -> dist.Work:
        """Begin to put the sum over all replicas into a tensor, which has the same shape in each.

        Returns:
            What can be waited for. On CUDA the current stream waits.
        """
        work = dist.all_reduce(tensor, async_op=True)
        assert work is not None
        return work

    def take_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Have what the first replica has in these tensors."""
        for tensor in tensors:
            dist.broadcast(tensor, 0)

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all replicas, those of the first one first.

        Args:
            rows: [N, C], where N may be another in each replica, and C too where N is 0.
        """
        shape = torch.tensor(rows.shape, device=rows.device)
        shapes = [torch.empty_like(shape) for _ in range(self.replicas)]
        dist.all_gather(shapes, shape)
        counts = [int(n) for n, _ in (found.tolist() for found in shapes)]
        width = max(int(found[1]) for found in shapes)
        padded = rows.new_zeros(max(counts), width)
        if len(rows):
            padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(self.replicas)]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
