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
    """Sends and receives one stage's messages.

    Set `item` to what the stage handles now: a batch, or a mark. The header of each message has the
    `item` or, if the message carries weights, a `Version`.
    """

    def __init__(self, stage: int, links: Links, device: torch.device, recorder: Recorder) -> None:
        self._stage, self.links = stage, links
        self.device, self.recorder = device, recorder
        self.item: Item | None = None

    def wait(self, end: Sender | Receiver, kind: str) -> None:
        """Wait until a receiver has a message ("starved") or a sender has a free slot ("blocked").

        The recorder counts this time as time of the given kind.
        """
        with self.recorder.span(kind):
            # No time limit: the launcher must blame the stage that hangs, not this one.
            while not end.wait(timeout_s=1.0):
                self.links.pulse.renew_progress()

    def receive(
        self, instruction: Instruction, version: Version | None = None
    ) -> dict[str, Tensor]:
        """Receive the message that an instruction asks for.

        Return its tensors by name, on this stage's device.

        `version` identifies the weights in a message with weights; for other messages it is None.
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
        """Free the slot of the oldest message that is received and not released yet.

        `instruction` says on which channel the message came.
        """
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

        `version` identifies the weights in a message with weights; for other messages it is None.
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
