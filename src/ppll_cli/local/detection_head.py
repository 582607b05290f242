"""`local.detection_head`: on which levels of a pyramid a detector's modules are trained."""

from dataclasses import replace
from typing import Literal

import torch

from ppll_cli.local.method import Site

DetectionHead = Literal["pyramid", "level"]
"""`pyramid`: on all levels. `level`: on those of the stride of the map that the head reads."""


def with_detection_head(site: Site, chosen: DetectionHead | None) -> Site:
    """The site, with a task that makes local heads of the kind that was chosen.

    Args:
        site: The module.
        chosen: The kind; None, the default, is `pyramid`.

    Raises:
        ConfigError: The task is another one than detection, or the head of a user's own model does
            not say how wide it is.
    """
    if chosen is None:
        return site
    from ppll_cli.tasks.detection import detection_of, pyramid_head  # torchvision's detectors

    key = "local.detection_head"
    task = detection_of(site.task, chosen, key)
    if chosen == "pyramid":
        return site
    with torch.device("meta"):
        head = pyramid_head(site.units[-1].build(), key, chosen, f"use {key}=pyramid")
    return replace(site, task=replace(task, level_heads=head.style))
