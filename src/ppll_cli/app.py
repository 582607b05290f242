"""ppll-run: compose, validate, launch, report.

Nothing heavy is imported before it is needed: `--help`, `--cfg job` and the refusal of a wrong
configuration do without torch.
"""

import logging
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ppll_cli import __version__
from ppll_cli.errors import ConfigError, Interrupted, PpllError, WorkerFailedError

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger(__name__)


def main() -> NoReturn:
    """The console script.

    Exit status: 0 completed, 1 failed, 2 wrong input, 128 + n ended by signal n.
    """
    try:
        _main(sys.argv[1:])
    except ConfigError as error:
        _complain(str(error))
        sys.exit(2)
    except WorkerFailedError:  # shown and logged where it was caught
        sys.exit(1)
    except Interrupted as error:
        _complain(str(error))
        sys.exit(128 + error.signal)
    except KeyboardInterrupt:  # before any worker was started
        sys.exit(130)
    sys.exit(0)


def _main(arguments: list[str]) -> None:
    if sys.platform not in ("linux", "darwin"):
        raise ConfigError("platform", sys.platform, "is not supported", "use Linux, or macOS")
    if "--version" in arguments:
        sys.stdout.write(f"ppll-run {__version__}\n")
        return
    sys.path.append(str(Path.cwd()))  # where a user's own `_target_` stands
    overrides = [a for a in arguments if _is_override(a)]
    options = [a for a in arguments if not _is_override(a)]
    # Hydra's parser wants all overrides together; people write them on both sides of an option.
    sys.argv[1:] = overrides + options

    from ppll_cli.runtime import forkserver

    if {*options} <= {"-m", "--multirun"}:
        forkserver.start()  # it imports torch while the configuration is composed and checked here
    try:
        _hydra_main(arguments, overrides)
    except (ConfigError, KeyboardInterrupt):
        forkserver.stop()
        raise


def _hydra_main(arguments: list[str], overrides: list[str]) -> None:
    """Have Hydra compose the configuration, and run with it."""
    import argparse

    import hydra
    from omegaconf.errors import OmegaConfBaseException

    from ppll_cli.explain import explain

    # With this, Hydra lets exceptions through instead of printing them and leaving with status 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    argparse.ArgumentParser.error = _refuse_arguments  # type: ignore[method-assign, assignment]
    register_resolvers()
    began = False
    failures: list[PpllError] = []

    def task(cfg: "DictConfig") -> float | None:
        # Hydra would announce an exception in its own words, and would give up a sweep's results.
        nonlocal began
        began = True
        try:
            return _run(cfg)
        except OmegaConfBaseException as error:
            failures.append(explain(error, arguments, conf_dir()))
        except PpllError as error:
            failures.append(error)
        return None

    run = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(task)
    try:
        _check_run_dir(overrides)
        run()
    except ConfigError:
        raise
    except Exception as error:  # of Hydra, OmegaConf, a parser or the file system
        if began:
            raise
        raise explain(error, arguments, conf_dir()) from None
    if failures:
        raise failures[0]


def register_resolvers() -> None:
    """What our configuration asks of OmegaConf: `pid` tells runs of one second apart."""
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("pid", os.getpid, replace=True)


def conf_dir() -> Path:
    """The folder of configuration groups: in an installed package, or at the top of a clone."""
    package = Path(__file__).parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parents[1] / "conf"


def _run(cfg: "DictConfig") -> float | None:
    """One run, once Hydra has composed its configuration; the metric is returned for sweepers."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from ppll_cli import settings
    from ppll_cli.targets import make

    hydra_config = HydraConfig.get()
    run_dir = Path(hydra_config.runtime.output_dir)
    choices = {k: str(v) for k, v in hydra_config.runtime.choices.items() if "hydra" not in k}
    ours = {".hydra", f"{hydra_config.job.name}.log"}
    if strangers := sorted({path.name for path in run_dir.iterdir()} - ours):
        raise ConfigError("hydra.run.dir", run_dir, f"holds {strangers[0]}", "choose a new folder")
    try:
        config: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        parsed = settings.parse(config)
        for group in ("schedule", "data"):  # what their classes refuse needs no torch
            make(group, config[group])

        from ppll_cli.runtime.run import Run

        summary = Run(parsed, config, choices, run_dir).execute()
    except WorkerFailedError as error:
        log.error(_failure_screen(error, run_dir / f"{hydra_config.job.name}.log"))
        raise
    except (ConfigError, OmegaConfBaseException):
        if not (run_dir / "config.json").exists():  # nothing ran here
            _remove(run_dir, ours)
        raise
    result = summary["test"] or {}
    metric: float | None = next((v for k, v in result.items() if k != "loss"), None)
    return metric


def _is_override(argument: str) -> bool:
    return not argument.startswith("-") and ("=" in argument or argument.startswith("~"))


def _check_run_dir(overrides: list[str]) -> None:
    """Refuse a folder that holds something before Hydra writes into it."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    for override in OverridesParser.create().parse_overrides(overrides):
        if override.key_or_group == "hydra.run.dir":
            value = OmegaConf.create({"dir": override.value()}).dir
            if Path(value).is_dir() and any(Path(value).iterdir()):
                raise ConfigError(
                    "hydra.run.dir", value, "exists and is not empty", "choose a new folder"
                )


def _remove(run_dir: Path, ours: set[str]) -> None:
    """Remove what Hydra made for a run that was refused, and folders that are empty then."""
    for name in ours:
        path = run_dir / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for folder in (run_dir, *run_dir.parents):
        made = folder == run_dir or folder.is_relative_to(Path.cwd() / "outputs")
        if not made or any(folder.iterdir()):
            return
        folder.rmdir()


def _refuse_arguments(_: object, message: str) -> NoReturn:
    raise ConfigError("arguments", " ".join(sys.argv[1:]), message, "see ppll-run --help")


def _failure_screen(error: WorkerFailedError, log_file: Path) -> str:
    """Root cause first."""
    report = error.report
    lines = [f"ppll-run: {error}"]
    for key in ("phase", "batch", "shapes"):
        if report.get(key):
            lines.append(f"  {key}: {report[key]}")
    lines.append(f"  log: {log_file}")
    return "\n".join([*lines, report.get("traceback", "")]).rstrip()


def _complain(message: str) -> None:
    sys.stderr.write(f"ppll-run: {message}\n")
