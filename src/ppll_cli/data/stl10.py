"""STL-10: 5,000 training and 8,000 test colour photographs, 96x96 pixels, 10 classes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ppll_cli.data.files import Part
from ppll_cli.data.published import Content, Published


class Stl10(Published):
    """STL-10 from the binary files in `stl10_binary` under the root, without unlabelled images."""

    class_count = 10
    class_names = (
        *("airplane", "bird", "car", "cat", "deer"),
        *("dog", "horse", "monkey", "ship", "truck"),
    )
    channel_count = 3

    @property
    def url(self) -> str:  # noqa: D102
        from torchvision.datasets import STL10

        return str(STL10.url)

    def files(self, part: Part) -> Mapping[str, str]:  # noqa: D102
        from torchvision.datasets import STL10

        listed = STL10.train_list[:2] if part == "train" else STL10.test_list
        return {f"{STL10.base_folder}/{name}": md5 for name, md5 in listed}

    def open(self, part: Part, folder: Path, *, download: bool = False) -> Content:  # noqa: D102
        from torchvision.datasets import STL10

        # torchvision would check the sums of all files, even of 2.8 GB of unlabelled images.
        lists: dict[str, Any] = {"train_list": [], "test_list": []}
        lists[f"{part}_list"] = STL10.train_list[:2] if part == "train" else STL10.test_list
        data = type("STL10", (STL10,), lists)(folder, part, download=download)
        return data.data, data.labels
