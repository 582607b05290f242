"""STL-10: 5,000 training and 8,000 test colour photographs, 96x96 pixels, 10 classes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ppll_cli.data.files import Part
from ppll_cli.data.published import Content, Published


class Stl10(Published):
    """STL-10 from the data root's folder `stl10_binary`, without the unlabelled images."""

    original = "STL10"
    class_count = 10
    class_names = (
        *("airplane", "bird", "car", "cat", "deer"),
        *("dog", "horse", "monkey", "ship", "truck"),
    )
    channel_count = 3

    def files(self, part: Part) -> Mapping[str, str]:  # noqa: D102
        return {f"{self.published.base_folder}/{name}": md5 for name, md5 in self.listed(part)}

    def open(self, part: Part, folder: Path, *, download: bool = False) -> Content:  # noqa: D102
        data = self.only(part)(folder, part, download=download)
        return data.data, data.labels

    def listed(self, part: Part) -> Sequence[tuple[str, str]]:
        """Return name and MD5 sum of the two files of `part`.

        The 2.8 GB of unlabelled images are left out.
        """
        return super().listed(part)[:2]
