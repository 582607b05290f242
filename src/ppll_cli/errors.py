"""Exceptions that the program raises."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ppll_cli.leaves.names import seat_name
from ppll_cli.leaves.printable import LONGEST, printable

MOST = 600
"""Largest number of characters of a problem, and of a remedy, in a message."""


class PpllError(Exception):
    """Base class of the exceptions in this module. They can be pickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        # By default, pickle passes the message to the constructor, which takes other arguments.
        return type(self).__new__, (type(self), *self.args), vars(self)


@contextmanager
def noted(note: str) -> Iterator[None]:
    """Add a note to any exception that the body of the `with` raises."""
    try:
        yield
    except Exception as error:
        error.add_note(note)
        raise


class ConfigError(PpllError):
    """Raised when the user's input is wrong: the configuration, the command line, or a file.

    A console script then ends with exit status 2. The message is one line, with control characters
    escaped and long values shortened.

    Args:
        key: The configuration key or command-line argument that is wrong, as the user writes it.
        value: The value that was given.
        problem: What is wrong with the value.
        remedy: What the user can do about the problem; may be empty.
    """

    def __init__(self, key: str, value: object, problem: str, remedy: str = "") -> None:
        self.key, self.value, self.problem, self.remedy = key, value, problem, remedy
        problem, remedy = (printable(" ".join(s.split()), MOST) for s in (problem, remedy))
        given = json.dumps(value) if value is None or isinstance(value, bool) else value
        message = f"{printable(key, LONGEST)}={printable(given, LONGEST)}: {problem}"
        super().__init__(message + (f"; {remedy}" if remedy else ""))


class ScheduleError(PpllError):
    """Raised when the instructions that a schedule yields are invalid, or would train wrongly."""


class DeadlockError(PpllError):
    """Raised when no stage of a simulated pipeline can go on: each waits for another, or is done.

    Args:
        report: Says what each stage waits for.
        full: The channels without a free slot whose senders wait for a slot, each as a
            `ppll_cli.pipeline.rules.Channel`.
    """

    def __init__(self, report: str, full: Sequence[Any] = ()) -> None:
        super().__init__(report)
        self.full = tuple(full)


class SchemaError(PpllError):
    """Raised when a machine will send other tensors than the receiving machine expects.

    Args:
        channel: Name of the channel between the machines.
        theirs: Lists the tensors that the sender will send.
        ours: Lists the tensors that the receiver expects.
    """

    def __init__(self, channel: str, theirs: str, ours: str) -> None:
        super().__init__(f"{channel}: {theirs} will be sent, but {ours} are expected")


class NonFiniteError(PpllError):
    """Raised when a loss is infinite or NaN, unless `optim.nonfinite` is "skip".

    On CUDA, it may be raised some optimizer steps after the step of this loss.

    Args:
        step: Number of optimizer steps done before the batch of this loss; None if unknown.
        module: Number of the module that the loss trains.
        norm: Largest gradient norm of a parameter in the module's last chunk, infinite if a norm is
            NaN; None if unknown.
    """

    def __init__(self, step: int | None, module: int, norm: float | None) -> None:
        when = "of a recent step" if step is None else f"of step {step}"
        where = "in the chunk that computes it"
        seen = "" if norm is None else f"; the largest gradient norm {where} is {norm:.3g}"
        super().__init__(
            f"the loss of module {module} {when} is not finite{seen}; try a smaller optim.lr, a"
            " larger optim.warmup_epochs, optim.clip_norm=1, precision=fp32 if it is bf16, or"
            " optim.nonfinite=skip"
        )


class ReplayError(PpllError):
    """Raised when a restarted worker computes a message again, with a result that differs.

    Args:
        tensor: Names the tensor whose values differ. If something else differs, such as the header
            or a shape, it names all tensors of the message.
        message: Describes the message.
    """

    def __init__(self, tensor: str, message: str) -> None:
        super().__init__(
            f"the restarted worker computed {tensor} of {message} again, and the result differs; "
            "perhaps a class of your own keeps state that is neither a parameter nor a buffer, or "
            "draws random numbers that no seed fixes; "
            "recover=off restarts no worker"
        )


class WorkerFailedError(PpllError):
    """Raised when a worker has failed, after all workers have been stopped (exit 1).

    Args:
        report: Describes the failure. Its keys are `error` (the message), `device`, and either
            `name` or `stage`, which identify the worker. Optional keys, among others: `replica`,
            `replicas`, `machine`, `traceback`, and `repeats`, which is true if a resumed run would
            fail in the same way.
    """

    def __init__(self, report: dict[str, Any]) -> None:
        self.report = report
        name = report.get("name")
        if name is None:
            seat = report["stage"], report.get("replica", 0), report.get("replicas", 1)
            name = f"stage {seat_name(*seat)}"
        where = f"{report['device']} of {report['machine']}" if "machine" in report else None
        super().__init__(f"{name} ({where or report['device']}): {report['error']}")

    @property
    def repeats(self) -> bool:
        """Whether a resumed run would fail in the same way."""
        return bool(self.report.get("repeats", False))


class RunFailedError(PpllError):
    """Raised when a run failed outside its workers, after all workers were stopped (exit 1)."""


class Interrupted(PpllError):  # noqa: N818 - an interruption is not an error
    """Raised when a signal ended the run early, or `max_minutes`, which acts as SIGTERM does.

    `signal` is the number of the signal.
    """

    def __init__(self, signal: int) -> None:
        self.signal = signal
        super().__init__(f"stopped by signal {signal}")
