"""Executes instructions that only some settings need: replicas, gradient norms, watched weights."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ppll_cli.job.job import Job
from ppll_cli.job.links import Links
from ppll_cli.pipeline import instructions as do
from ppll_cli.worker.chunk import HeldChunk
from ppll_cli.worker.mail import Mail
from ppll_cli.worker.norms import Norms
from ppll_cli.worker.recorder import Recorder
from ppll_cli.worker.upstream import Upstream


class Further:
    """Executes the instructions of a stage that plain PPLL does not need."""

    def __init__(
        self,
        job: Job,
        links: Links,
        chunks: Mapping[int, HeldChunk],
        device: torch.device,
        mail: Mail,
        recorder: Recorder,
    ) -> None:
        self.upstream = Upstream(job, links, chunks, mail, recorder)
        self._chunks, self._mail = chunks, mail
        self._norms = Norms(len(job.features), chunks.values(), device)

    def execute(self, instruction: do.Instruction, step: int) -> None:
        """Execute an instruction of a batch. Before the batch, `step` optimizer steps are done."""
        chunks, mail, norms, upstream = self._chunks, self._mail, self._norms, self.upstream
        match instruction:
            case do.StartAverage(chunk):
                chunks[chunk].start_average()
            case do.FinishAverage(chunk):
                chunks[chunk].finish_average()
            case do.AddNorms():
                norms.add()
            case do.ReceiveNorms():
                norms.take(mail.receive(instruction)["norms"])
                mail.release(instruction)
            case do.SendNorms():
                mail.send(instruction, {"norms": norms.vector})
            case do.ReceiveWeights():
                upstream.receive(instruction, step)
            case do.ReadWeights():
                upstream.read(instruction, step)
            case do.SendWeights():
                upstream.send(instruction, step)
            case _:
                raise AssertionError(f"no such instruction: {instruction}")

    def squared_norm(self) -> Tensor | None:
        """Return the squared gradient norm of the model; None if stages do not exchange norms."""
        return self._norms.total()

    def end(self) -> None:
        """Forget the norms of the batch, at its end."""
        self._norms.end()
