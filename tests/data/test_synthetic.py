from collections.abc import Callable
from typing import Any

import pytest
import torch

from ppll_cli.data.synthetic import Synthetic
from ppll_cli.errors import ConfigError

Options = Callable[..., dict[str, Any]]
OWN = {"size": 6, "channels": 2, "classes": 3, "train_samples": 50, "test_samples": 20}


def test_images_have_the_given_shape_and_are_always_the_same(options: Options) -> None:
    splits = Synthetic(**options(**OWN)).load()
    again = Synthetic(**options(**OWN)).load()
    assert splits["train"].images.shape == (50, 2, 6, 6)
    assert splits["test"].images.shape == (20, 2, 6, 6)
    assert set(splits["train"].labels.tolist()) == {0, 1, 2}
    for name, split in splits.items():
        assert torch.equal(split.images, again[name].images)
        assert torch.equal(split.labels, again[name].labels)
    assert not torch.equal(splits["train"].images[:20], splits["test"].images)


@pytest.mark.parametrize("key", OWN)
def test_a_wrong_option_is_refused_by_name(options: Options, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Synthetic(**options(**OWN | {key: 0}))
    assert caught.value.key == f"data.{key}"


def test_options_of_all_data_sets_are_checked(options: Options) -> None:
    with pytest.raises(ConfigError, match="2 channels"):
        Synthetic(**options(**OWN, mean=[0.1, 0.2, 0.3]))
