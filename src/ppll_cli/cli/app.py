"""ppll-run: compose and check the configuration, launch the run, report its result.

Slow imports are inside functions: `--help`, `--cfg job` and the checks that need neither the model
nor the data import no torch.
"""

import gc
import logging
import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from ppll_cli import __version__
from ppll_cli.cli.arguments import check_surroundings
from ppll_cli.cli.job import Jobs, how_to_resume, remove_sweep
from ppll_cli.cli.overrides import (
    check_links,
    check_run_dir,
    expand_home,
    for_each_job,
    ignored_folder,
    is_override,
    is_sweep,
    without_auto,
)
from ppll_cli.config.composition import CONFIG, register_resolvers
from ppll_cli.config.options import conf_dir
from ppll_cli.errors import ConfigError, Interrupted, RunFailedError, WorkerFailedError
from ppll_cli.launch.failure import is_of_disk, run_failed
from ppll_cli.launch.machines.rendezvous import Rendezvous
from ppll_cli.leaves import forkserver, scratch
from ppll_cli.leaves.printable import printable
from ppll_cli.leaves.programs import ending_signals
from ppll_cli.observe import streams
from ppll_cli.observe.logs import said
from ppll_cli.observe.runs import CONFIG_FILE

if TYPE_CHECKING:
    from ppll_cli.launch.machines.fleet import Fleet

log = logging.getLogger(__name__)


def main() -> NoReturn:
    """Run the console script.

    Exit status: 0 if the run completed, 1 if it failed, 2 after wrong input, 128 + n if signal n
    ended it. `--help`, `--version` and `--cfg job` exit with 1 if their text cannot be written.
    """
    gc.disable()  # until torch is imported: garbage collection takes a fifth of the import's time
    streams.guard()
    for number in ending_signals():
        signal.signal(number, _leave)
    try:
        _main(sys.argv[1:])
    except ConfigError as error:
        _complain(str(error))
        sys.exit(2)
    except (WorkerFailedError, RunFailedError):  # the error has been shown already
        sys.exit(1)
    except Interrupted as error:
        _complain(str(error))
        sys.exit(128 + error.signal)
    finally:
        gc.freeze()  # otherwise, Python's exit would scan all objects of torch for garbage
        gc.enable()
    sys.exit(0)


def _leave(number: int, _: FrameType | None) -> NoReturn:
    # No exception is raised here, because the code that the signal interrupts could catch it.
    forkserver.kill()
    scratch.remove()
    with suppress(Exception):
        sys.stdout.flush()
    resume = Jobs.current.resume_command
    told = f"{how_to_resume(resume)}\n" if resume else ""
    with suppress(OSError):  # standard error may be closed
        os.write(2, f"{told}ppll-run: {Interrupted(number)}\n".encode())
    os._exit(128 + number)


def _main(arguments: list[str]) -> None:
    check_surroundings()
    if "--version" in arguments:
        sys.stdout.write(f"ppll-run {__version__}\n")
        streams.leave("ppll-run")
    overrides = [expand_home(a) for a in arguments if is_override(a)]
    options = [a for a in arguments if not is_override(a)]
    # Users write overrides before and after an option, but Hydra's parser needs them together.
    sys.argv[1:] = overrides + options

    where = Rendezvous.of(os.environ)
    if where is not None:  # keeps torch from printing C++ stack traces when a machine is lost
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    if {*options} <= {"-m", "--multirun"}:
        forkserver.start()  # the server imports torch while this process checks the configuration
    try:
        if where is None:
            _hydra_main(arguments, overrides)
        else:
            _on_machines(where, arguments, overrides)
    finally:
        forkserver.stop()


def _on_machines(where: Rendezvous, arguments: list[str], overrides: list[str]) -> None:
    from ppll_cli.launch.machines.fleet import Fleet

    fleet = Fleet(where)
    try:
        if not fleet.first:
            from ppll_cli.launch.machines.follow import follow

            logging.basicConfig(format="%(message)s", level=logging.INFO)
            follow(fleet)
            return
        run_dir = fleet.remembered
        if run_dir and not is_sweep(arguments):  # torchrun has restarted the launchers: resume
            settled = ("hydra.run.dir=", "resume=")
            overrides = [each for each in overrides if not each.startswith(settled)]
            options = [each for each in arguments if not is_override(each)]
            overrides.append(f"resume={run_dir}")
            arguments = sys.argv[1:] = overrides + options
        try:
            _hydra_main(arguments, overrides, fleet)
        except ConfigError as error:
            fleet.fail(error)
            raise
        finally:
            fleet.tell({"kind": "end"})
    finally:
        fleet.close()


def _hydra_main(arguments: list[str], overrides: list[str], fleet: "Fleet | None" = None) -> None:
    import argparse

    import hydra

    from ppll_cli.cli.explain import explain, refuse_arguments
    from ppll_cli.cli.sweeper import BasicSweeper

    # With this variable, Hydra raises exceptions instead of printing them.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    argparse.ArgumentParser.error = refuse_arguments  # type: ignore[method-assign, assignment]
    register_resolvers()
    jobs = Jobs.current = Jobs(arguments, overrides, fleet)
    run = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=CONFIG)(jobs.run)
    try:
        _for_hydra(jobs)
        BasicSweeper.install()
        run()
    except SystemExit as ended:  # Hydra has printed its help
        if ended.code:
            raise
    except KeyboardInterrupt:
        if not jobs.failures:
            raise
    except Exception as error:  # raised by a check, Hydra, OmegaConf or the file system
        if not jobs.began:
            jobs.remove_begun()
            raise explain(error, arguments) from None
        if isinstance(error, OSError) and is_of_disk(error, jobs.folder):
            failed = run_failed(error, jobs.folder)  # Hydra could not begin a job
            log.error("ppll-run: %s", failed)
            jobs.failures.append(failed)
        elif not jobs.failures:
            raise
        else:  # a sweeper that searches for settings got no results, because jobs failed
            log.error("ppll-run: the sweep ended early: %s", said(error))
    finally:
        Jobs.current = Jobs()
        remove_sweep(jobs.folder, jobs.above)
    if not jobs.began and not is_sweep(arguments):  # Hydra has only printed text, as for `--help`
        streams.leave("ppll-run")
    raise_first(jobs)


def _for_hydra(jobs: Jobs) -> None:
    from ppll_cli.launch.resume import recorded
    from ppll_cli.launch.sweeps import recorded_sweep

    options, sweep = sys.argv[1 + len(jobs.overrides) :], is_sweep(jobs.arguments)
    if (warning := ignored_folder(jobs.overrides, sweep=sweep)) is not None:
        _complain(warning)
    jobs.overrides = overrides = without_auto(jobs.overrides, sweep=sweep)
    if sweep:
        known = jobs.swept = recorded_sweep(overrides)
        for_hydra = for_each_job(overrides) if known is None else known.arguments(overrides)
    elif (before := recorded(overrides)) is None:
        check_run_dir(overrides)
        for_hydra = overrides
    else:
        if {"-c", "--cfg"} & {*jobs.arguments}:  # Hydra would not show the recorded settings
            problem, there = "--cfg does not show what a run recorded", before.run_dir / CONFIG_FILE
            raise ConfigError("resume", before.run_dir, problem, f"see {there}")
        check_links(before.run_dir)
        jobs.before, for_hydra = before, before.arguments(overrides)
    sys.argv[1:] = for_hydra + options


def raise_first(jobs: Jobs) -> None:
    """Raise the error of the first job that did not complete, if there is one.

    If a job was interrupted, raise its error, even if another job failed first. If resuming the
    sweep may help, print first how to resume it.

    Raises:
        ConfigError: The job was refused.
        RunFailedError: The job failed.
        Interrupted: A signal, or the limit of time, has ended a job.
        WorkerFailedError: A worker of the job failed.
    """
    failures = jobs.failures
    broken = [e for e in failures if isinstance(e, WorkerFailedError | RunFailedError)]
    helps = any(not getattr(e, "repeats", False) for e in broken) or (jobs.ends and not failures)
    told = any(isinstance(error, Interrupted) for error in failures)  # the job said how to resume
    if jobs.resume_command and helps and not told:
        sys.stderr.write(f"{how_to_resume(jobs.resume_command)}\n")
    if failures:
        raise failures[0]
    if "interrupted" in jobs.ends:
        raise Interrupted(signal.SIGTERM)
    if jobs.ends:  # Hydra's launcher ran these jobs in other processes
        problem = f"{len(jobs.ends)} of the sweep's jobs did not complete"
        if jobs.ends[0] == "refused":
            raise ConfigError("hydra.sweep.dir", jobs.folder, problem, "see the output of each job")
        log.error("ppll-run: %s", problem)
        raise RunFailedError(problem)


def _complain(message: str) -> None:
    sys.stderr.write(f"ppll-run: {printable(' '.join(message.splitlines()))}\n")
