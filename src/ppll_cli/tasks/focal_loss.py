"""The focal loss (arXiv 1708.02002) of a batch of pictures.

Legend: B pictures, A anchors of a picture, C classes.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

ALPHA = 0.25
"""Weight of what is there; what is not there has 1 - ALPHA (torchvision's choice)."""


class FocalLoss(torch.autograd.Function):
    """What torchvision's `sigmoid_focal_loss` computes, with the same bits, in fewer steps.

    Its backward is written out: autograd would compute the sigmoid again, and keep nine tables of
    [B, A, C] numbers where three are enough. With p the probability of the right answer, the loss
    is weight * (1 - p)^2 * -log(p).
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, classes: Tensor) -> Tensor:
        """The loss of each logit.

        Args:
            ctx: What the backward is given.
            logits: float32 [B, A, C].
            classes: Whether an anchor stands for a class, bool [B, A, C].

        Returns:
            float32 [B, A, C].
        """
        # Picture by picture: on CPU the last bit of a sigmoid depends on where it stands in its
        # thread's share of the table, and a loss is not to depend on the pictures beside it.
        scores = torch.stack([each.sigmoid() for each in logits])
        cross = binary_cross_entropy_with_logits(logits, classes.to(logits.dtype), reduction="none")
        ctx.save_for_backward(scores, cross, classes)
        return torch.where(classes, ALPHA, 1 - ALPHA) * (cross * _wrong(classes, scores).square())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The gradient of the logits."""
        scores, cross, classes = ctx.saved_tensors
        wrong = _wrong(classes, scores)
        gradient = gradients[0] * torch.where(classes, ALPHA, 1 - ALPHA)
        through_cross = (scores - classes.to(scores.dtype)) * (gradient * wrong.square())
        right = -(gradient * cross * (2 * wrong))
        through_scores = torch.where(classes, right, -right) * (1 - scores) * scores
        return through_scores + through_cross, None


def _wrong(classes: Tensor, scores: Tensor) -> Tensor:
    """1 - p."""
    return 1 - torch.where(classes, scores, 1 - scores)
