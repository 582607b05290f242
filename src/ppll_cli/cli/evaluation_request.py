"""What a command line of ppll-eval asks for. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppll_cli.config.settings import Settings


@dataclass(frozen=True)
class EvaluationRequest:
    """What the command line asks for, checked as far as possible without torch.

    Attributes:
        config: The run's configuration, with the evaluation's changes.
        settings: The same configuration as typed settings.
        checkpoint: `last`, `best`, or a number of optimizer steps.
        ema: Whether averaged weights are evaluated.
        split: The split to evaluate; None to predict without an evaluation.
        data: Name of the data set's option.
        other_data: Name of the data set's option if the run was trained on other data; None if it
            was trained on the same data.
        batch_size: Samples per evaluation batch; None if not given.
        pictures: Files to predict from.
        output: Folder for the results.
        classes: Names of the classes that the run learnt; empty if the run recorded no names.
    """

    run_dir: Path
    config: dict[str, Any]
    settings: Settings
    checkpoint: str
    ema: bool
    split: str | None
    data: str
    other_data: str | None
    batch_size: int | None
    pictures: Sequence[Path]
    output: Path
    classes: Sequence[str]
