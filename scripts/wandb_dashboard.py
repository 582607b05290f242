"""`scripts/wandb_dashboard`: a page of wandb that compares the speed of runs.

The panels show values that `tracker=wandb` records. A panel cannot divide the speed of one run by
the speed of another, so it takes the speed-up from the table that a finished sweep logs.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from ppll_cli.config.commands import command, pip_install
from ppll_cli.errors import ConfigError

STAGES_SHOWN = 8
"""Number of stages in the panels. wandb draws nothing for a stage that a run does not have."""

RUN_SPEED = "train.samples_per_second"
"""The summary's key for the samples per second in the steady state."""

METRICS = ("accuracy", "ap", "psnr")


def workspace(
    entity: str, project: str, name: str, metrics: Sequence[str], baseline: str | None
) -> Any:
    """Return the page as a wandb workspace, without saving it.

    `baseline` is the ID of the wandb run with which wandb compares all others; None for none.
    """
    import wandb_workspaces.workspaces as ws

    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
            ws.Section(name=title, panels=panels, is_open=True)
            for title, panels in _panels(metrics).items()
        ],
        runset_settings=ws.RunsetSettings(
            baseline_run=baseline,
            pinned_columns=[
                "config:choices.schedule",
                "config:resolved.gpus",
                f"summary:{RUN_SPEED}",
                "summary:pipeline.bubble_fraction",
                *(f"summary:test.{metric}" for metric in metrics),
            ],
        ),
    )


def _panels(metrics: Sequence[str]) -> dict[str, list[Any]]:
    import wandb_workspaces.reports.v2 as wr

    metric, tested = f"test {' or '.join(metrics)}", [f"test/{metric}" for metric in metrics]
    return {
        "Speed": [
            _bars("choices.schedule", "samples/s by schedule", RUN_SPEED),
            _bars("resolved.gpus", "samples/s by gpus", RUN_SPEED),
            wr.ScatterPlot(
                title="samples/s over gpus",
                x=wr.Config("resolved.gpus"),
                y=wr.SummaryMetric(RUN_SPEED),
            ),
            _over_time("samples/s while training", ["train/samples_per_second"]),
        ],
        "Speed-up": [
            wr.CustomChart(
                query={"summaryTable": {"tableKey": "comparison_groups"}},
                chart_name="wandb/bar/v0",
                chart_fields={"label": "label", "value": "speed_up_over_bp_mean"},
                chart_strings={"title": "speed-up over bp by group of a sweep"},
            ),
            wr.MediaBrowser(title="comparison", media_keys=["comparison_picture"]),
            wr.RunComparer(diff_only=True),
        ],
        "Utilisation": [
            _bars("choices.schedule", "bubble by schedule", "pipeline.bubble_fraction"),
            _over_time("bubble", ["pipeline/bubble_fraction"]),
            _over_time("computing", _of_stages("stage_{}/compute_fraction")),
            _over_time("starved", _of_stages("stage_{}/starved_fraction")),
            _over_time("blocked", _of_stages("stage_{}/blocked_fraction")),
            wr.MediaBrowser(title="timeline", media_keys=["timeline"]),
        ],
        "Learning": [
            _over_time(metric, tested),
            _over_time("test loss", ["test/loss"]),
            wr.LinePlot(title=f"{metric} over steps", x="step", y=tested),
            wr.MediaBrowser(title="samples", media_keys=["samples"]),
        ],
        "Memory": [
            _over_time("memory of each stage, bytes", _of_stages("stage_{}/memory_bytes")),
            wr.BarPlot(
                title="peak memory of each stage, bytes",
                metrics=_of_stages("stages.{}.peak_memory_bytes"),
            ),
        ],
    }


def _of_stages(key: str) -> list[str]:
    return [key.format(stage) for stage in range(STAGES_SHOWN)]


def _over_time(title: str, keys: list[str]) -> Any:
    import wandb_workspaces.reports.v2 as wr

    return wr.LinePlot(title=title, x="train_seconds", y=keys, title_x="seconds of training")


def _bars(key: str, title: str, summary: str) -> Any:
    # Return a panel with a bar for each value of the setting `key`, for example each schedule. The
    # height of a bar is the mean of the runs' summary value `summary`.
    import wandb_workspaces.reports.v2 as wr

    return wr.BarPlot(
        title=title,
        metrics=[summary],  # bars show values of the summary
        groupby=wr.Config(key),
        groupby_aggfunc="mean",
        groupby_rangefunc="minmax",
        orientation="v",
    )


def main(arguments: Sequence[str]) -> None:
    """Save the page in wandb, or print it as JSON.

    Raises:
        ConfigError: wandb or its API key is missing, or the page cannot be saved.
    """
    parser = argparse.ArgumentParser(prog="scripts/wandb_dashboard", description=__doc__)
    parser.add_argument("--entity", default=os.environ.get("WANDB_ENTITY", ""))
    parser.add_argument("--project", default=os.environ.get("WANDB_PROJECT", "ppll-run"))
    parser.add_argument("--name", default="ppll-run: speed")
    parser.add_argument("--metric", help=f"the metric to show (default: {', '.join(METRICS)})")
    parser.add_argument(
        "--baseline", metavar="RUN_ID", help="the wandb run with which all others are compared"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the page as JSON")
    given = parser.parse_args(arguments)
    try:
        import wandb
        import wandb_workspaces  # noqa: F401
    except ImportError as error:
        remedy = pip_install("wandb-workspaces")
        raise ConfigError("wandb_dashboard", error.name, "is not installed", remedy) from None
    if not given.dry_run:
        if not wandb.login(prompt=False):
            login = command("wandb", "login")
            remedy = f"{login}, or set WANDB_API_KEY; --dry-run needs no key"
            raise ConfigError("wandb_dashboard", "", "no API key of wandb is configured", remedy)
        given.entity = given.entity or wandb.Api().default_entity
    metrics = [given.metric] if given.metric else METRICS
    page = workspace(given.entity, given.project, given.name, metrics, given.baseline)
    if given.dry_run:
        spec = page._to_model().spec  # what `page.save` would send
        sys.stdout.write(spec.model_dump_json(by_alias=True, exclude_none=True, indent=2) + "\n")
        return
    try:
        page.save()
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError("wandb_dashboard", given.project, said) from error
    sys.stdout.write(f"{page.url}\n")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ConfigError as error:
        sys.stderr.write(f"scripts/wandb_dashboard: {error}\n")
        sys.exit(2)
