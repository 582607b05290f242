"""The focal loss (arXiv 1708.02002) of a batch of pictures.

Legend: B pictures, A anchors of a picture, C classes.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

ALPHA = 0.25
"""The loss for the class of an anchor's object is multiplied by ALPHA, and the loss for all other
classes by 1 - ALPHA. This is torchvision's default.
"""


class FocalLoss(torch.autograd.Function):
    """Computes `sigmoid_focal_loss` of each picture, with less work and memory than torchvision.

    The result equals torchvision's for this picture alone, bit for bit.

    The loss is weight * (1 - p)^2 * -log(p), with the weight `ALPHA` or 1 - `ALPHA`. Here p is the
    probability that the model gives to the true answer: the sigmoid of the logit if the anchor's
    object has the class, else 1 minus the sigmoid.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, classes: Tensor) -> Tensor:
        """Return the loss of each logit; logits and losses are float32 [B, A, C].

        `classes`, bool [B, A, C], says whether an anchor is matched to an object of a class.
        """
        # One picture at a time: on CPU the last bit of a sigmoid depends on the position in the
        # tensor, and a picture's loss must not depend on the other pictures of its batch.
        scores = torch.stack([each.sigmoid() for each in logits])
        cross = binary_cross_entropy_with_logits(logits, classes.to(logits.dtype), reduction="none")
        ctx.save_for_backward(scores, cross, classes)  # autograd would keep nine tensors, not three
        return torch.where(classes, ALPHA, 1 - ALPHA) * (cross * _wrong(classes, scores).square())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of the logits."""
        scores, cross, classes = ctx.saved_tensors
        wrong = _wrong(classes, scores)
        gradient = gradients[0] * torch.where(classes, ALPHA, 1 - ALPHA)
        through_cross = (scores - classes.to(scores.dtype)) * (gradient * wrong.square())
        right = -(gradient * cross * (2 * wrong))
        through_scores = torch.where(classes, right, -right) * (1 - scores) * scores
        return through_scores + through_cross, None


def _wrong(classes: Tensor, scores: Tensor) -> Tensor:
    # 1 - p (see `FocalLoss`)
    return 1 - torch.where(classes, scores, 1 - scores)
