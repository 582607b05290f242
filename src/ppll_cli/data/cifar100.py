"""CIFAR-100: 50,000 and 10,000 colour photographs of 32x32 pixels, 100 classes."""

from typing import Any

from ppll_cli.data.cifar10 import Cifar10


class Cifar100(Cifar10):
    """The Python version of the files, in `cifar-100-python` under the root; its fine labels."""

    class_count = 100

    @property
    def published(self) -> Any:  # noqa: D102
        from torchvision.datasets import CIFAR100

        return CIFAR100
