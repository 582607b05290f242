"""Sends a unit's weights to earlier modules, whose losses read them in later batches."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ppll_cli import seeding
from ppll_cli.job.course import Version
from ppll_cli.job.job import Job
from ppll_cli.leaves.random_states import generators_of, seed_each
from ppll_cli.pipeline.instructions import ReadWeights, ReceiveWeights, SendWeights
from ppll_cli.worker.mail import Mail
from ppll_cli.worker.networks import Networks
from ppll_cli.worker.views import unchanged


class Upstream:
    """Sends weights of this worker's units to losses, and passes weights to this worker's losses.

    For example, the loss of `local=man` reads the weights of the unit after its module. They are
    `lag` batches old. `receive` and `read` raise a RuntimeError if the loss changes the weights.
    """

    def __init__(self, job: Job, chunks: Mapping[int, Networks], mail: Mail) -> None:
        self._job, self._chunks, self._mail = job, chunks, mail

    def send_ahead(self) -> None:
        """Before the training, send the weights that other stages read in the first batches."""
        start, links = self._job.start, self._mail.links
        for channel in links.senders:
            if channel.kind == "weights":
                links.pulse.begin("sending the first weights", None)
                instruction = SendWeights(channel.target, channel.chunk, channel.ahead)
                for step in range(start, start + channel.ahead):
                    self._send_version(instruction, step, start)

    def receive(self, instruction: ReceiveWeights, step: int) -> None:
        """Receive weights from another stage for a loss. `step` is the number of steps done."""
        version = self._version(instruction.chunk, step)
        weights = self._mail.receive(instruction, version)
        with self._mail.recorder.span("auxiliary", instruction):
            self._show(instruction.chunk, weights, version)
        self._mail.release(instruction)

    def read(self, instruction: ReadWeights, step: int) -> None:
        """Pass a unit's weights to a loss of the same stage. `step` is the number of steps done."""
        version = self._version(instruction.chunk, step)
        weights = self._kept(instruction.chunk, step - version.steps)
        self._show(instruction.chunk, weights, version)

    def send(self, instruction: SendWeights, step: int) -> None:
        """After the step of batch `step`, send weights for batch `step + instruction.ahead`.

        Do nothing if the run ends before that batch.
        """
        self._send_version(instruction, step + instruction.ahead, step + 1)

    def _version(self, watcher: int, step: int) -> Version:
        # With a lag of 1, a loss reads the newest weights: those after all `step` steps.
        return Version(step + 1 - self._job.routes.watches[watcher].lag)

    def _show(self, watcher: int, weights: Mapping[str, Tensor], version: Version) -> None:
        chunk = self._chunks[watcher]
        assert chunk.criterion is not None
        module = chunk.place.module
        number = seeding.watching(self._job.settings.seed, module, version.steps)
        seed_each(generators_of(chunk.device), number)
        method = f"the method see() of module {module}'s criterion"
        with torch.no_grad(), unchanged(weights, method):
            # A copy of the mapping, because see() may remove entries.
            chunk.criterion.see(dict(weights), version.steps)

    def _send_version(self, instruction: SendWeights, step: int, done: int) -> None:
        if step < self._job.course.steps:  # else the run ends before this batch
            version = self._version(instruction.chunk, step)
            weights = self._kept(instruction.chunk, done - version.steps)
            self._mail.send(instruction, weights, version)

    def _kept(self, watcher: int, age: int) -> Mapping[str, Tensor]:
        routes = self._job.routes
        holder = self._chunks[routes.watched(watcher)]
        return holder.versions[routes.watches[watcher].unit].of_age(age)
