"""Data sets that torchvision downloads, checks against published MD5 sums, and reads."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from numpy.typing import NDArray

from ppll_cli.data.dataset import Arrays, ImageDataset
from ppll_cli.data.download import one_line, provide
from ppll_cli.data.files import PARTS, PUBLISHED, Part
from ppll_cli.errors import ConfigError

if TYPE_CHECKING:
    from ppll_cli.data.batches import Split
    from ppll_cli.data.identity import Identity

Content = tuple[NDArray[Any], NDArray[Any]]
"""Images, uint8 [N, C, H, W], and labels, integers [N]."""


class Published(ImageDataset):
    """A data set of torchvision; `original` is the name of its class in `torchvision.datasets`."""

    original: ClassVar[str]
    remedy = PUBLISHED

    @property
    def published(self) -> Any:
        """The data set's class in torchvision."""
        from torchvision import datasets

        return getattr(datasets, self.original)

    @property
    def url(self) -> str:
        """The URL where the user finds the files."""
        return str(self.published.url)

    def listed(self, part: Part) -> Sequence[tuple[str, str]]:
        """Return name and MD5 sum of each file that torchvision lists for `part`."""
        found: Sequence[tuple[str, str]] = getattr(self.published, f"{part}_list")
        return found

    def only(self, part: Part) -> Any:
        """Return a subclass of torchvision's class that checks only the files of `part`."""
        lists = {f"{each}_list": self.listed(each) if each == part else [] for each in PARTS}
        return type(self.original, (self.published,), lists)

    @abstractmethod
    def files(self, part: Part) -> Mapping[str, str]:
        """Return the MD5 sum of each file of `part`, by the file's path relative to the root."""

    @abstractmethod
    def open(self, part: Part, folder: Path, *, download: bool = False) -> Content:
        """Let torchvision check and read the files of `part` in `folder`.

        If `download` is true, torchvision first downloads missing files. If files are missing or
        wrong, or the download fails, exceptions of any kind may be raised.

        Returns:
            The images, uint8 [N, C, H, W], and the labels, integers [N].
        """

    def prepare(self) -> None:  # noqa: D102
        files = [name for part in PARTS for name in self.files(part)]
        provide(self, files, self.url, self._fetch)

    def _fetch(self, folder: Path) -> None:
        for part in PARTS:
            if not all((self.folder / name).is_file() for name in self.files(part)):
                self.open(part, folder, download=True)

    def read(self, part: Part) -> Arrays:  # noqa: D102
        try:
            images, labels = self.open(part, self.folder)
        except MemoryError:
            raise
        except Exception as error:  # scipy and pickle raise exceptions of any kind
            raise self._explained(part, error) from error
        return Arrays(images, labels, self._source(part))

    def identity(self, splits: "dict[str, Split]") -> "Identity":
        """Return the names of the published files and their MD5 sums, without reading the files."""
        return {part: [*self.files(part).items()] for part in PARTS}

    def _source(self, part: Part) -> str:
        return f"{', '.join(self.files(part))} in {self.folder}"

    def _explained(self, part: Part, error: Exception) -> ConfigError:
        # torchvision's error does not name the missing or damaged file.
        from torchvision.datasets.utils import calculate_md5

        for name, published in self.files(part).items():
            path = self.folder / name
            if not path.is_file():
                return self.fault(path, "is missing")
            try:
                found = calculate_md5(path)
            except OSError as unreadable:
                return self.fault(path, f"cannot be read ({unreadable.strerror})")
            if found != published:
                problem = f"is not the published file (its MD5 sum is {found}, not {published})"
                return self.fault(path, problem)
        return self.fault(self._source(part), f"cannot be read ({one_line(error)})")
