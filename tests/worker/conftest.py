"""Fixtures for tests of workers."""

import pytest

from tests.data.picture_files import write_photos
from tests.data.scene_files import write_fashion


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Return, for each model that needs its own data, the overrides for these data."""
    root = tmp_path_factory.mktemp("files")
    scenes = ["data=fashion_scenes", "data.pictures=8", "data.test_pictures=3", "data.side=64"]
    scenes += [f"data.root={write_fashion(root / 'fashion')}", "data.short_side=64"]
    photos = write_photos(root / "photos", width=72, height=64)
    pictures = ["data=photos", f"data.folders=[{photos}]", f"data.cache={root / 'cache'}"]
    pictures += ["data.patch=8", "data.patches_per_epoch=10", "data.tile=64", "data.overlap=13"]
    return {"retinanet": [*scenes, "data.long_side=64"], "edsr": pictures}
