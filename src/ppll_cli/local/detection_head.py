"""The setting `local.detection_head`: the pyramid levels on which a detector's modules train."""

from dataclasses import replace
from typing import Literal

import torch

from ppll_cli.local.method import Site
from ppll_cli.local.parts import head_of

DetectionHead = Literal["pyramid", "level"]
"""The pyramid levels on which a detector's module is trained. `pyramid` means all levels. `level`
means only the levels that belong to the stride of the local head's input map (see `LevelHead`)."""


def with_detection_head(site: Site, chosen: DetectionHead | None) -> Site:
    """Return the site with which a local method makes local heads for `local.detection_head`.

    Local methods call this first. For `level`, the new site's task is a `LevelDetection`, which
    makes heads for a part of the pyramid levels. For `pyramid` and None, the site stays the same.

    Raises:
        ConfigError: `chosen` is set, but the task is not detection; or it is `level`, but the
            model's head is not a `PyramidHead`.
    """
    if chosen is None:
        return site
    from ppll_cli.local.level_head import with_levels  # slow: imports torchvision
    from ppll_cli.tasks.detection import detection_of
    from ppll_cli.tasks.pyramid import PyramidHead

    key = "local.detection_head"
    task = detection_of(site.task, chosen, key)
    if chosen == "pyramid":
        return site
    with torch.device("meta"):
        built = site.units[-1].build()
    head = head_of(built, PyramidHead, (key, chosen), f"use {key}=pyramid")
    return replace(site, task=with_levels(task, head.style))
