"""The user's cache folder, and the code that torch compiles into it. Imports no torch."""

import os
from contextlib import suppress
from pathlib import Path

INDUCTOR = "TORCHINDUCTOR_CACHE_DIR"


def cache_folder() -> Path | None:
    """Return the program's folder in the user's cache, which may not exist; None without a home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # the XDG specification asks for relative paths to be ignored
        base = os.path.expanduser("~/.cache")
    return Path(base, "ppll-run") if os.path.isabs(base) else None


def keep_compiled_code() -> None:
    """Have torch keep compiled code in the cache folder, unless the user has chosen another folder.

    By default torch makes a folder of a predictable name in /tmp as soon as an optimizer is made;
    another user may have made it before. This function only names a folder, which torch makes when
    it needs it. Processes that are started later inherit the choice.
    """
    if os.environ.get(INDUCTOR):
        return
    folder = cache_folder()
    if folder is not None and _can_be_made(folder / "inductor"):
        os.environ[INDUCTOR] = str(folder / "inductor")
        return
    # Processes that this one starts inherit the choice, so the folder may go when this one ends.
    from ppll_cli.errors import ConfigError
    from ppll_cli.leaves.scratch import lasting_folder

    with suppress(ConfigError):  # the code that needs temporary files reports the error
        os.environ[INDUCTOR] = str(lasting_folder() / "inductor")


def _can_be_made(folder: Path) -> bool:
    """Return whether files can be made in a folder, which may not exist yet."""
    for place in (folder, *folder.parents):
        if place.exists():
            return place.is_dir() and os.access(place, os.W_OK | os.X_OK)
    return False
