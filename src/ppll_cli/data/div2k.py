"""DIV2K: 800 training and 100 validation pictures of 2K size (Agustsson and Timofte, 2017)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ppll_cli.data.files import Part
from ppll_cli.data.pictures.cache import Source
from ppll_cli.data.pictures.dataset import PictureDataset
from ppll_cli.errors import ConfigError

URL = "https://data.vision.ee.ethz.ch/cvl/DIV2K/"
PARTS = {"train": "train", "test": "valid"}


@dataclass(frozen=True, kw_only=True)
class Div2k(PictureDataset):
    """DIV2K from its published folders, in the data root or in the root's folder `DIV2K`.

    For scale 2, the small version of DIV2K_train_HR/0001.png is
    DIV2K_train_LR_bicubic/X2/0001x2.png. The validation pictures (DIV2K_valid_HR) are the split
    `test`. The files take 4 to 8 GB and have terms of use, so they are not downloaded.
    """

    def sources(self, part: Part) -> Sequence[Source]:  # noqa: D102
        name = f"DIV2K_{PARTS[part]}_HR"
        small = f"DIV2K_{PARTS[part]}_LR_bicubic/X{self.scale}"
        place = next((p for p in (self.folder, self.folder / "DIV2K") if (p / name).is_dir()), None)
        high = sorted((place / name).glob("*.png")) if place else []
        if place is None or not high:
            raise self._missing(f"no pictures in {self.folder / name}", self.folder / name)
        found = []
        for path in high:
            low = place / small / f"{path.stem}x{self.scale}.png"
            if not low.is_file():
                raise self._missing(f"{path.name} has no small picture {low}", place / small)
            found.append(Source(path, low))
        return found

    def _missing(self, problem: str, folder: Path) -> ConfigError:
        remedy = f"unpack the archives of {URL} so that {folder} has its pictures"
        return ConfigError("data.root", self.given_root, problem, f"{remedy}, or use data=photos")
