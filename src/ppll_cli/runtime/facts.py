"""What the user is shown of a run that has been prepared."""

from ppll_cli.observe.facts import RunFacts, StageFacts
from ppll_cli.runtime.prepare import Prepared
from ppll_cli.schedules.rules import Channel


def facts(prepared: Prepared) -> RunFacts:
    """Its stages, how large they are, and how many steps there are."""
    job = prepared.job
    rooms = job.channels()
    workers = []
    for seat in job.seats:
        index, units = seat.stage, job.layout.stages[seat.stage]
        modules = [chunk.module for chunk in job.layout.chunks(index)]
        costs = [prepared.unit_costs[unit] for unit in units]
        costs += [prepared.auxiliary_costs[module] for module in modules]
        workers.append(
            StageFacts(
                job.name(seat),
                job.place_name(seat),
                [prepared.units[unit] for unit in units],
                modules,
                sum(cost.params for cost in costs),
                sum(cost.flops for cost in costs),
                rooms[Channel(index - 1, index)].slots if index else 0,
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
