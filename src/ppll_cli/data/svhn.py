"""SVHN: 73,257 training and 26,032 test colour images of house digits, 32x32, 10 classes."""

from collections.abc import Mapping
from pathlib import Path

from ppll_cli.data.files import Part
from ppll_cli.data.published import Content, Published


class Svhn(Published):
    """SVHN from train_32x32.mat and test_32x32.mat in the data root, without the `extra` images."""

    original = "SVHN"
    class_count = 10
    channel_count = 3

    @property
    def url(self) -> str:  # noqa: D102
        return str(self.published.split_list["train"][0]).rsplit("/", 1)[0] + "/"

    def files(self, part: Part) -> Mapping[str, str]:  # noqa: D102
        _, name, md5 = self.published.split_list[part]
        return {name: md5}

    def open(self, part: Part, folder: Path, *, download: bool = False) -> Content:  # noqa: D102
        data = self.published(folder, part, download=download)
        return data.data, data.labels
