"""ppll-eval: evaluate a finished run's model on its own data, other data, or a user's pictures.

Slow imports are inside functions, so that `--help` and wrong command lines need not wait for torch.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from ppll_cli.cli.arguments import Parser, script
from ppll_cli.cli.evaluation_request import requested

DESCRIPTION = """\
Evaluates the model that a run has trained, on the run's own data or on other data for the same
task. With the last checkpoint and the run's own data, the results equal those in summary.json.
Besides the metric, ppll-eval shows the accuracy of each class and a confusion matrix, the average
precision of each class, or the PSNR of each picture. With --predict it shows what the model
predicts for pictures of your own: labels, boxes, or enlarged pictures.
"""
EPILOG = """\
Arguments with a `=` are overrides, as for ppll-run: data=OPTION, data.KEY, device, threads and
batch_size can be set. If the run used a class of your own, name it again, as for resume:
--config-dir=FOLDER, or model._target_=CLASS.

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
    """Return whether an argument contains `=`, and is neither an option nor an existing path."""
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
        type=_checkpoint,
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


def _checkpoint(text: str) -> str:
    if text in ("best", "last") or (text.isascii() and text.isdecimal()):
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is neither best, last nor a number of steps")


if __name__ == "__main__":
    main()
