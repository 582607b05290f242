"""Sends and receives the messages that a stage's instructions ask for."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ppll_cli.job.course import Item, Version
from ppll_cli.job.links import Header, Links
from ppll_cli.pipeline import rules
from ppll_cli.pipeline.instructions import Instruction
from ppll_cli.transport.channel import Receiver, Sender
from ppll_cli.worker.recorder import Recorder


class Mail:
    """Sends and receives messages through this worker's ends of channels.

    `item` is what the stage handles now: a batch, or a mark (evaluation, checkpoint or end). The
    header of each message contains `item`, or a `Version` if the message carries weights. `device`
    is the worker's device.
    """

    def __init__(self, stage: int, links: Links, device: torch.device, recorder: Recorder) -> None:
        self._stage, self.links = stage, links
        self.device, self.recorder = device, recorder
        self.item: Item | None = None

    def wait(self, end: Sender | Receiver, kind: str) -> None:
        """Wait until a message has arrived (`kind` "starved") or a slot is free (`kind` "blocked").

        The wait has no time limit, so that the parent blames the stage that hangs, not this one. If
        the run fails or the parent ends, this process ends too.
        """
        with self.recorder.span(kind):
            while not end.wait(timeout_s=1.0):
                self.links.pulse.renew_progress()

    def receive(
        self, instruction: Instruction, version: Version | None = None
    ) -> dict[str, Tensor]:
        """Receive the message that an instruction asks for, and return its tensors by name.

        `version` is None, except for a message with weights.
        """
        found = rules.receives(self._stage, instruction)
        assert found is not None
        channel, message = found
        receiver = self.links.receivers[channel]
        self.wait(receiver, "starved")
        # On CUDA, `receive` makes the stream, not this process, wait for the sender's queued work.
        kind = "starved" if self.device.type == "cuda" else "transfer"
        with self.recorder.span(kind, instruction):
            header, tensors = receiver.receive()
            expected = self._header(version, message.micro_batch, channel.chunk)
            assert header == expected, f"expected {expected} of {channel}, got {header}"
            self.links.pulse.received += channel.kind == "activations"
            return {name: tensor.to(self.device) for name, tensor in tensors.items()}

    def release(self, instruction: Instruction) -> None:
        """Free the slot of a received message."""
        channel = rules.gives_back(self._stage, instruction)
        assert channel is not None
        self.links.receivers[channel].release()

    def send(
        self,
        instruction: Instruction,
        tensors: Mapping[str, Tensor],
        version: Version | None = None,
    ) -> None:
        """Send tensors as the message that an instruction asks for.

        `version` is None, except for a message with weights.
        """
        found = rules.sends(self._stage, instruction)
        assert found is not None
        channel, message = found
        sender = self.links.senders[channel]
        self.wait(sender, "blocked")
        with self.recorder.span("transfer", instruction):
            sender.send(self._header(version, message.micro_batch, channel.chunk), tensors)
        self.links.pulse.sent += channel.kind == "activations"

    def _header(self, version: Version | None, micro_batch: int, chunk: int) -> Header:
        about = version or self.item
        assert about is not None
        return Header(about, micro_batch, chunk)
