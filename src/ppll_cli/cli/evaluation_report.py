"""The part of ppll-eval that imports torch: it evaluates, predicts, and shows the results."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

import torch

from ppll_cli.cli.arguments import writing_to
from ppll_cli.config.commands import short_path
from ppll_cli.data.files import sample_name
from ppll_cli.data.identity import files_in
from ppll_cli.errors import ConfigError
from ppll_cli.job.course import AVERAGED
from ppll_cli.job.devices import devices_here
from ppll_cli.launch.beginning import check_data, recorded_identity
from ppll_cli.launch.evaluation import Evaluated, evaluate
from ppll_cli.launch.loaded import LoadedRun, loaded
from ppll_cli.leaves.files import digest_of, write_json
from ppll_cli.leaves.names import counted
from ppll_cli.leaves.printable import printable
from ppll_cli.observe.console import rich_console
from ppll_cli.observe.logs import only_warn
from ppll_cli.tasks.task import Task, lower_is_better

if TYPE_CHECKING:
    from rich.table import Table

    from ppll_cli.cli.evaluate import EvaluationRequest

RESULTS_FILE = "evaluation.json"
CONFUSION_FILE = "confusion.png"

MOST_ROWS = 20
"""Largest number of rows of a table. A longer table has only the rows with the worst metric."""

MOST_LABELS = 3
"""Largest number of labels or boxes that are printed for a picture."""

_PLAIN = re.compile(r'[^\s,"]+( [^\s,"]+)*')
"""Matches names that are printed without quotes in a list with commas."""


def report(asked: "EvaluationRequest") -> None:
    """Evaluate and predict, write the results, and print them.

    Raises:
        ConfigError: The device, checkpoint, data, split, a picture or the output folder cannot be
            used.
    """
    (device,), _ = devices_here(asked.settings, 1, [])
    where = asked.run.run_dir, asked.config, asked.checkpoint, torch.device(device)
    run = loaded(*where, asked.other_data, asked.ema)
    _check_unseen(asked, run)
    with writing_to(asked.output):
        asked.output.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=asked.output).close()  # the evaluation may take hours, so try this first
    content: dict[str, Any] = {
        "run": str(asked.run.run_dir),
        "checkpoint": asked.checkpoint,
        "ema": asked.ema,
        "step": run.step,
        "data": asked.data,
        "device": device,
    }
    found = None
    if asked.split is not None:
        found = evaluate(run, asked.split, asked.batch_size)
        content |= _as_json(found)
    predictions = list(_predictions(run, asked.pictures, asked.output))
    if predictions:
        content["predictions"] = predictions
    with writing_to(asked.output):
        write_json(asked.output / RESULTS_FILE, content)
        (asked.output / CONFUSION_FILE).unlink(missing_ok=True)  # of an earlier evaluation
    if found is not None:
        _draw(found, run, asked)
    console = rich_console()
    for line in _lines(asked, run, found, predictions):
        is_text = isinstance(line, str)
        console.print(printable(line) if is_text else line, soft_wrap=is_text)


def _check_unseen(asked: "EvaluationRequest", run: LoadedRun) -> None:
    if asked.split not in ("test", "val"):
        return
    if asked.compares_data:
        otherwise = "evaluate another split or other data"
        check_data(asked.run, asked.settings.data, run.data.identity, otherwise)
    trained = files_in(recorded_identity(asked.run).get("train", ()))
    if not trained:  # nothing to compare
        return
    identity = run.data.identity
    if identity is None or digest_of(identity) == asked.run.data_sha256:
        return
    if seen := sorted(files_in(identity.get(asked.split, ())) & trained):
        problem = f"the run was trained on {len(seen)} of these pictures, such as {seen[0][0]}"
        raise ConfigError("--split", asked.split, problem, "evaluate other data")


def _as_json(found: Evaluated) -> dict[str, Any]:
    # The keys are as in summary.json, but never with `_ema`, even for averaged weights.
    made: dict[str, Any] = {"split": found.split, "samples": found.samples}
    made[found.split] = found.result
    if found.details is not None:
        made[found.details.plural] = list(found.details.entries)
        if found.details.confusion is not None:
            made["confusion"] = found.details.confusion
    return made


def _predictions(
    run: LoadedRun, files: Sequence[Path], output: Path
) -> Iterator[Mapping[str, Any]]:
    for number, file in enumerate(files):
        try:
            found = run.predict(file)
        except ConfigError as error:
            if error.key != "picture":
                raise
            remedy = error.remedy or "give a picture that can be read"
            raise ConfigError("--predict", file, error.problem, remedy) from None
        result = {"file": str(file), **found.result}
        if found.picture is not None:
            place = Path("predictions", sample_name(number, file))
            with writing_to(output):
                (output / "predictions").mkdir(exist_ok=True)
                found.picture.save(output / place)
            result["picture"] = str(place)
        yield result


def _draw(found: Evaluated, run: LoadedRun, asked: "EvaluationRequest") -> None:
    if found.details is None or found.details.confusion is None:
        return
    with only_warn(f"{CONFUSION_FILE} could not be drawn"):
        from ppll_cli.observe.confusion_picture import picture

        names = [entry["class"] for entry in found.details.entries]
        title = f"{_summary(found, run, asked.ema)} on {asked.data} ({found.samples:,} samples)"
        picture(asked.output / CONFUSION_FILE, found.details.confusion, names, title)


def _lines(
    asked: "EvaluationRequest",
    run: LoadedRun,
    found: Evaluated | None,
    predictions: Sequence[Mapping[str, Any]],
) -> Iterator["str | Table"]:
    pairs = zip(asked.run.classes, run.classes, strict=False)
    for before, now in [pair for pair in pairs if pair[0] != pair[1]][:1]:
        differ = f"class names differ from those in the run: {now!r} instead of {before!r}"
        yield f"{asked.data}: {differ}"
    yield from map(_predicted, predictions)
    what = "predictions"
    if found is not None:
        if found.details is not None and found.details.entries:
            yield _table(found.details.kind, found.details.entries, run.task)
        numbers = ", ".join(f"{name} {_number(value)}" for name, value in found.result.items())
        step = "" if run.step is None else f"after step {run.step}, "
        yield f"{step}{found.samples} samples of {asked.data}: {numbers}"
        what = _summary(found, run, asked.ema)
    yield f"{what} in {short_path(asked.output)}"


def _summary(found: Evaluated, run: LoadedRun, ema: bool) -> str:
    metric = run.task.metric
    split = found.split + AVERAGED if ema else found.split
    return f"{split} {metric} {_number(found.result.get(metric))}"


def _table(kind: str, entries: Sequence[Mapping[str, Any]], task: Task) -> "Table":
    from rich.table import Table

    names = list(entries[0])
    title, shown = None, list(entries)
    if len(entries) > MOST_ROWS:
        known = [entry for entry in entries if entry.get(task.metric) is not None]
        lower = lower_is_better(task)
        known.sort(key=lambda entry: float(entry[task.metric]), reverse=lower)
        shown = known[:MOST_ROWS]
        which = "highest" if lower else "lowest"
        title = f"the {len(shown)} with the {which} {task.metric}; {RESULTS_FILE} has all "
        title += str(len(entries))
    table = Table(box=None, title=title, title_justify="left", pad_edge=False)
    table.add_column(kind, overflow="fold")
    for name in names[1:]:
        table.add_column(name, justify="right", overflow="fold")
    for entry in shown:
        table.add_row(printable(entry[kind]), *(_number(entry[name]) for name in names[1:]))
    return table


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4f}"


def _predicted(found: Mapping[str, Any]) -> str:
    if "probabilities" in found:
        sure = found["probabilities"][:MOST_LABELS]
        said = ", ".join(f"{_quoted(each['class'])} {each['probability']:.4f}" for each in sure)
    elif "boxes" in found:
        sure = found["boxes"][:MOST_LABELS]
        said = counted(len(found["boxes"]), "box", "es") + (": " if sure else "")
        said += ", ".join(f"{_quoted(each['class'])} {each['score']:.2f}" for each in sure)
    elif "width" in found:
        said = f"{found['width']}x{found['height']} pixels"
    else:
        said = "see " + RESULTS_FILE
    picture = f", {found['picture']}" if "picture" in found else ""
    return f"{found['file']}: {said}{picture}"


def _quoted(name: str) -> str:
    return name if _PLAIN.fullmatch(name) else json.dumps(name, ensure_ascii=False)
