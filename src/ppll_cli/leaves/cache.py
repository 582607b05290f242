"""Finds the user's cache folder, and makes torch keep compiled code there. Imports no torch."""

import os
from contextlib import suppress
from pathlib import Path

INDUCTOR = "TORCHINDUCTOR_CACHE_DIR"


def cache_folder() -> Path | None:
    """Return the program's cache folder, which may not exist yet; None if the user has no home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # the XDG specification says that relative paths are ignored
        base = os.path.expanduser("~/.cache")
    return Path(base, "ppll-run") if os.path.isabs(base) else None


def keep_compiled_code() -> None:
    """Make torch keep compiled code in the cache folder, if the user has not chosen a folder.

    If the cache folder cannot be used, torch gets a temporary folder. If there is no temporary
    folder either, torch's own default stays. Child processes use the same folder, because an
    environment variable names it.
    """
    # torch's own default is a folder with a predictable name in /tmp, which another user may have
    # created.
    if os.environ.get(INDUCTOR):
        return
    folder = cache_folder()
    if folder is not None and _can_be_made(folder / "inductor"):
        os.environ[INDUCTOR] = str(folder / "inductor")
        return
    # Use a temporary folder, which is removed when this process ends.
    from ppll_cli.errors import ConfigError
    from ppll_cli.leaves.scratch import lasting_folder

    with suppress(ConfigError):  # code that really needs temporary files will report the error
        os.environ[INDUCTOR] = str(lasting_folder() / "inductor")


def _can_be_made(folder: Path) -> bool:
    for place in (folder, *folder.parents):
        if place.exists():
            return place.is_dir() and os.access(place, os.W_OK | os.X_OK)
    return False
