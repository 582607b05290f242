"""Collects what the console shows about a run before it begins, such as the size of stages."""

from ppll_cli.observe.facts import RunFacts, StageFacts
from ppll_cli.prepare.preparation import Prepared


def facts(prepared: Prepared) -> RunFacts:
    """Return what the console shows about a run and its workers."""
    job = prepared.job
    workers = []
    for seat in job.seats:
        index = seat.stage
        costs = prepared.subject.stage_costs(job.layout, index)
        entering = [c for c in job.channels if c.target == index and c.kind == "activations"]
        workers.append(
            StageFacts(
                job.name(seat),
                job.place_name(seat),
                [[job.names[unit] for unit in run] for run in job.layout.runs(index)],
                job.layout.modules_of(index),
                sum(cost.params for cost in costs),
                sum(cost.flops for cost in costs),
                sum(job.channels[channel].slots for channel in entering),
            )
        )
    course = job.course
    return RunFacts(
        job.task.metric,
        course.epochs,
        job.start,
        course.steps,
        course.steps_per_epoch,
        course.batch_size,
        job.replicas,
        workers,
        getattr(job.task, "reference", None),
    )
