"""Makes the plan of a run's batches, evaluations and checkpoints."""

from ppll_cli.config.settings import Settings
from ppll_cli.errors import ConfigError
from ppll_cli.job.course import Course, split_share
from ppll_cli.leaves.names import counted
from ppll_cli.pipeline.schedule import Schedule
from ppll_cli.prepare.cutting import placed
from ppll_cli.prepare.subject import Subject


def largest_micro_batch(settings: Settings, schedule: Schedule) -> int:
    """Return the number of samples of the largest micro-batch."""
    return split_share(settings.batch_size, schedule.microbatches, settings.replicas, 0)[0]


def evaluated_together(settings: Settings, schedule: Schedule) -> int:
    """Return how many evaluation batches go through a replica's pipeline together.

    If a batch visits each stage only one time, the result is 1. If it visits a stage several times,
    the result is the number of stages, because one batch per stage keeps all stages busy.
    """
    stages = 1 if schedule.one_stage else settings.stages_asked
    return stages if len(placed(schedule, stages)) > stages else 1


def course_of(settings: Settings, schedule: Schedule, subject: Subject) -> Course:
    """Return the plan of a run's batches, evaluations and checkpoints.

    Raises:
        ConfigError: The training set has fewer samples than a batch, or a batch has fewer samples
            than micro-batches or replicas.
    """
    samples, size, parts = subject.samples, settings.batch_size, schedule.microbatches
    if size > samples["train"]:
        problem = f"the training set has {counted(samples['train'], 'sample')}"
        raise ConfigError("batch_size", size, problem, f"use at most {samples['train']}")
    if parts > size:
        problem = f"a batch of {size} samples cannot be split into {parts} micro-batches"
        remedy = f"use at most {size}, or a larger batch_size"
        raise ConfigError("schedule.microbatches", parts, problem, remedy)
    form = subject.evaluation
    course = Course(
        samples=samples,
        batch_size=size,
        drop_last=subject.drop_last,
        # Evaluation batches are no larger than micro-batches, for which memory is planned.
        evaluation_size=form.samples if form else largest_micro_batch(settings, schedule),
        epochs=settings.epochs,
        max_steps=settings.max_steps,
        eval_every=settings.eval_every,
        checkpoint_every=settings.checkpoint.every,
        checkpoint_best=settings.checkpoint.best,
        evaluation_batches=evaluated_together(settings, schedule),
        averages=settings.optim.ema is not None,
        log_every=settings.log_every,
    )
    smallest, replicas = min(course.batch_sizes()), settings.replicas
    if smallest < replicas:
        has = f"the last batch of an epoch has {smallest} sample(s)"
        remedy = "use data.drop_last=true, another batch_size or fewer replicas"
        raise ConfigError("replicas", replicas, f"{has}, fewer than one for each replica", remedy)
    return course
