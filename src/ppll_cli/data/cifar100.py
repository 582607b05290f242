"""CIFAR-100: 50,000 training and 10,000 test colour photographs, 32x32 pixels, 100 classes."""

from typing import Any

from ppll_cli.data.cifar10 import Cifar10


class Cifar100(Cifar10):
    """CIFAR-100 with its fine labels, from `cifar-100-python` under the root."""

    class_count = 100

    @property
    def published(self) -> Any:  # noqa: D102
        from torchvision.datasets import CIFAR100

        return CIFAR100
