"""A batch of a user's data set that does not fit the run is named before it is computed."""

import re
from typing import Any

import pytest
import torch

from ppll_cli.leaves.values import ValueSpec
from ppll_cli.worker.feed import checked_batch

SPECS = {
    "image": ValueSpec((1, 8, 8), torch.float32),
    "label": ValueSpec((), torch.int64),
}
IMAGE, LABEL = torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("made", "problem"),
    [
        ((IMAGE, LABEL), "returned tuple instead of tensors by name"),
        ({"image": IMAGE}, "returned no 'label', only image"),
        ({}, "returned no 'image', only nothing"),
        ({"image": IMAGE, "label": 3}, "returned 'label' as int instead of torch.int64 [4]"),
        (
            {"image": IMAGE.double(), "label": LABEL},
            "'image' as torch.float64 [4, 1, 8, 8] instead of torch.float32 [4, 1, 8, 8]",
        ),
        ({"image": IMAGE[:3], "label": LABEL}, "'image' as torch.float32 [3, 1, 8, 8] instead of"),
        ({"image": IMAGE[:, 0], "label": LABEL}, "'image' as torch.float32 [4, 8, 8] instead of"),
        ({"image": IMAGE.repeat(1, 3, 1, 1), "label": LABEL}, "'image' as torch.float32 [4, 3, 8,"),
        ({"image": IMAGE, "label": LABEL[0]}, "'label' as torch.int64 [] instead of torch.int64"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(made: Any, problem: str) -> None:
    """The worker failed later, with an error about another tensor or about a missing key."""
    with pytest.raises(TypeError, match=re.escape(problem)):
        checked_batch(made, SPECS, 4, "train()")


def test_a_batch_of_unusual_tensors_is_refused() -> None:
    """The worker failed later, in its own code: such tensors cannot be sliced or watched."""
    with torch.inference_mode():
        unusual = {"inference_mode() torch.float32": IMAGE + 1}
    unusual["torch.sparse_coo torch.float32"] = IMAGE.to_sparse()
    for found, image in unusual.items():
        with pytest.raises(TypeError, match=re.escape(f"'image' as {found} [4, 1, 8, 8] instead")):
            checked_batch({"image": image, "label": LABEL}, SPECS, 4, "train()")


def test_a_batch_may_have_smaller_images_and_further_tensors() -> None:
    made = {"image": IMAGE[..., :5], "label": LABEL, "more": LABEL}
    found = checked_batch(made, SPECS, 4, "evaluation()")
    assert [*found] == ["image", "label"]
