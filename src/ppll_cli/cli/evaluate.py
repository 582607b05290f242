"""ppll-eval: evaluate a run's model on the run's data or other data, or predict from pictures.

Slow imports are inside functions, so that `--help` and wrong command lines need not wait for torch.
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ppll_cli.cli.arguments import Parser, refuse_if_only_for_runs, script, searched
from ppll_cli.config.commands import key_of
from ppll_cli.config.composition import composed
from ppll_cli.config.settings import Settings, parse
from ppll_cli.config.targets import make
from ppll_cli.data.source import PREPROCESSING
from ppll_cli.errors import ConfigError

if TYPE_CHECKING:
    from ppll_cli.launch.resume import Recorded

READING = {"download", "cache", "loaders"}
"""Keys of `data` that only say how samples are read."""

FREE = ("batch_size", "data", "device", "threads")
"""Keys and groups of the run's configuration that an evaluation may change."""


DESCRIPTION = """\
Evaluates the model that a run has trained, on the run's own data or on other data for the same
task. With the last checkpoint and the run's own data, the results equal those in summary.json.
Besides the metric, ppll-eval shows the accuracy of each class and a confusion matrix, the average
precision of each class, or the PSNR of each picture. With --predict it shows what the model
predicts for pictures of your own: labels, boxes, or enlarged pictures.
"""
EPILOG = """\
Arguments with a `=` are overrides, as for ppll-run: data=OPTION, data.KEY, device, threads and
batch_size can be set. If the run used a class of your own, name the class again, as when you resume
the run: --config-dir=FOLDER, or model._target_=CLASS.

  ppll-eval outputs/DATE/TIME
  ppll-eval outputs/DATE/TIME --checkpoint=best --split=val
  ppll-eval outputs/DATE/TIME data=svhn device=cpu
  ppll-eval outputs/DATE/TIME --predict cat.jpg dog.jpg

Exit status: 0 done; 2 wrong input (one line says what is wrong); 1 failed.
"""


def main() -> NoReturn:
    """Run the console script."""
    script("ppll-eval", _main)


def _main(arguments: Sequence[str]) -> None:
    overrides = [each for each in arguments if _is_override(each)]
    asked = requested(_options([each for each in arguments if not _is_override(each)]), overrides)

    from ppll_cli.cli.evaluation_report import report

    report(asked)


def _is_override(argument: str) -> bool:
    return "=" in argument and not argument.startswith("-") and not os.path.exists(argument)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="ppll-eval",
        usage="ppll-eval RUN_DIR [--checkpoint best|last|N] [--ema] [--split test|val|train] "
        "[--output FOLDER] [--config-dir FOLDER] [--predict FILE ...] [KEY=VALUE ...]",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="directory of the run")
    parser.add_argument(
        "--checkpoint",
        default="last",
        metavar="NAME",
        help="best, last, or a number of optimizer steps (default: last)",
    )
    parser.add_argument(
        "--ema",
        action="store_true",
        help="evaluate the averaged weights, which a run with optim.ema keeps",
    )
    parser.add_argument(
        "--split",
        choices=("test", "val", "train"),
        help="the split to evaluate (default: test, or none with --predict)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="folder for the results (default: RUN_DIR/evaluation)",
    )
    parser.add_argument(
        "--predict",
        nargs="+",
        default=(),
        type=Path,
        metavar="FILE",
        help="predict from pictures of your own; with --split, the data set is also evaluated",
    )
    parser.add_config_dir()
    return parser.parse_args(arguments)


@dataclass(frozen=True)
class EvaluationRequest:
    """What the user asks ppll-eval for, checked as far as possible without torch.

    Attributes:
        run: The record of the run.
        config: The run's configuration, with the changes of the command line.
        checkpoint: `last`, `best`, or a number of optimizer steps.
        ema: Whether to use the averages of the weights.
        split: The split to evaluate; None to predict without an evaluation.
        compares_data: Whether to refuse data that have changed since the run. True for a split that
            the run held out of its training set, unless the user chooses other data.
        data: The chosen option of the group `data`.
        other_data: Like `data`, but None if the settings of the data are the run's.
        batch_size: Samples per evaluation batch; None if not given.
        pictures: Files of pictures to predict from.
        output: The folder for results.
    """

    run: "Recorded"
    config: dict[str, Any]
    settings: Settings
    checkpoint: str
    ema: bool
    split: str | None
    compares_data: bool
    data: str
    other_data: str | None
    batch_size: int | None
    pictures: Sequence[Path]
    output: Path


def requested(options: argparse.Namespace, overrides: Sequence[str]) -> EvaluationRequest:
    """Return the request of a command line.

    Raises:
        ConfigError: The run, an override or a picture cannot be used.
    """
    from ppll_cli.launch.resume import recorded_in

    run_dir: Path = options.run_dir.expanduser()
    for file in options.predict:
        if not os.path.isfile(file):
            problem = "is not a file" if os.path.exists(file) else "there is no such file"
            raise ConfigError("--predict", file, problem, "give pictures, such as folder/*.png")
    run = recorded_in(run_dir, "RUN_DIR")
    config, data = _configured(run, overrides, options.config_dir)
    settings = parse(config)
    dataset = make("data", settings.data)  # the class checks its arguments without torch
    split = options.split if options.predict else options.split or "test"
    held_out = split == "val" or (split == "test" and getattr(dataset, "test_is_held_out", False))
    before, now = run.config["data"], config["data"]
    if held_out:
        _check_fraction(before, now)
    given = {key_of(each) for each in overrides}
    return EvaluationRequest(
        run,
        config,
        settings,
        options.checkpoint,
        options.ema,
        split,
        held_out and all(before.get(key) == now.get(key) for key in {*before, *now} - READING),
        data,
        data if now != before else None,
        settings.batch_size if "batch_size" in given else None,
        options.predict,
        options.output or run.run_dir / "evaluation",
    )


def _configured(
    run: "Recorded", overrides: Sequence[str], config_dir: Path | None
) -> tuple[dict[str, Any], str]:
    from ppll_cli.cli.explain import explain
    from ppll_cli.launch.resume import refused

    def check(key: str, override: str, value: Any) -> None:
        if key.split(".")[0] not in FREE:
            given = override.partition("=")[2]
            raise refused(key, given, run.recorded_as(key), free=FREE, who="an evaluation")

    for each in overrides:
        refuse_if_only_for_runs(each, f"ppll-eval takes {', '.join(FREE)} and data.KEY")
    given = [key_of(each) for each in overrides]
    here = [*overrides, *searched(config_dir)]
    try:
        config, chosen = run.with_changes(*composed(run.arguments(here)), overrides, check)
    except Exception as error:
        raise explain(error, here, "ppll-eval") from None
    for key in PREPROCESSING:  # other data are preprocessed like the run's data
        before = run.config["data"]
        if key in before and key in config["data"] and f"data.{key}" not in given:
            config["data"][key] = before[key]
    return config, chosen["data"]


def _check_fraction(before: dict[str, Any], now: dict[str, Any]) -> None:
    same = all(before.get(key) == now.get(key) for key in ("_target_", "root", "folders"))
    fraction, most = now.get("val_fraction") or 0, before.get("val_fraction") or 0
    if same and fraction > most:
        problem = f"the run held out {most}, so it was trained on some of these samples"
        remedy = "evaluate another split or other data"
        if most:
            remedy = f"give at most {most}, or evaluate on other data"
        raise ConfigError("data.val_fraction", fraction, problem, remedy)


if __name__ == "__main__":
    main()
