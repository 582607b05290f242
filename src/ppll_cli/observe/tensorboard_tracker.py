"""Tracks a run for `tracker=tensorboard`: writes event files with torch's own writer."""

import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from textwrap import indent
from typing import Any

from ppll_cli.config.commands import pip_install
from ppll_cli.errors import ConfigError
from ppll_cli.leaves.nested import flat
from ppll_cli.observe.tracker import Moment, Tracked, line_scalars, samples, stage_scalars, tree

CODE = "    "
"""Indentation with which TensorBoard shows a text as it is, not as Markdown."""


class TensorboardTracker:
    """Writes event files for TensorBoard.

    `dir` is the folder of this run's event files; None for `tensorboard` in the run directory.

    Raises:
        ConfigError: The package `tensorboard` is not installed.
    """

    def __init__(self, *, dir: str | None = None) -> None:  # noqa: A002 - as for wandb
        if find_spec("tensorboard") is None:
            problem, remedy = "tensorboard is not installed", pip_install("tensorboard")
            raise ConfigError("tracker", "tensorboard", problem, remedy)
        self._dir = dir

    def start(self, run: Tracked) -> None:
        """Open the event files.

        After a resume, TensorBoard hides what the interrupted run had written for steps after the
        checkpoint.
        """
        from torch.utils.tensorboard import SummaryWriter

        self._tracked = run
        self._writer: Any = SummaryWriter(
            self._dir or str(run.run_dir / "tensorboard"),
            # Values of the checkpoint's own step stay visible.
            purge_step=run.step + 1 if run.resumed else None,
            flush_secs=10,
        )
        config = json.dumps({**run.config, "choices": dict(run.choices)}, indent=2)
        self._writer.add_text("config", indent(config, CODE), run.step)

    def metrics(self, line: Mapping[str, Any], at: Moment) -> None:
        """Write the numbers of a line of `metrics.jsonl`."""
        self._write(line["step"], line_scalars(line), at)

    def stages(self, step: int, stages: Sequence[Mapping[str, Any]], at: Moment) -> None:
        """Write the stages' fractions of time and their memory, and the bubble."""
        self._write(step, stage_scalars(stages), at)

    def _write(self, step: int, values: Mapping[str, float], at: Moment) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step, walltime=at.unix_s)

    def end(self, summary: Mapping[str, Any]) -> None:
        """Write summary, timeline and samples, and close the files."""
        self._picture("timeline", self._tracked.run_dir / "timeline.png", summary["steps"])
        for sample in samples(self._tracked.run_dir):
            self._picture(f"samples/{sample.stem}", sample, summary["steps"])
        lines = "\n".join(f"{key}: {value}" for key, value in flat(tree(summary)).items())
        self._writer.add_text("summary", indent(lines, CODE), summary["steps"])
        self._writer.close()

    def sweep(self, folder: Path, name: str) -> None:
        """Write the comparison of a sweep's runs."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(self._dir or str(folder / "tensorboard"))
        self._picture("comparison", folder / "comparison.png", 0)
        if (table := folder / "comparison.csv").exists():
            self._writer.add_text("comparison", indent(table.read_text().strip(), CODE), 0)
        self._writer.close()

    def _picture(self, key: str, path: Path, step: int) -> None:
        if path.exists():
            import numpy as np
            from PIL import Image

            with Image.open(path) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            self._writer.add_image(key, pixels, step, dataformats="HWC")
