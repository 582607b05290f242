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
    """Check `local.detection_head`; for `level`, replace the site's task by a `LevelDetection`.

    `pyramid` and `level` need a detection task. `level` also needs a model whose head is a
    `PyramidHead`, because the local heads share settings of this head (`HeadStyle`).
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
