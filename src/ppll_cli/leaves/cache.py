"""The user's cache folder, and what torch keeps there. Imports nothing heavy."""

import os
from contextlib import suppress
from pathlib import Path

INDUCTOR = "TORCHINDUCTOR_CACHE_DIR"


def cache_folder() -> Path | None:
    """The program's folder in the user's cache; it may not exist yet. None: there is no home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # the XDG specification asks for relative paths to be ignored
        base = os.path.expanduser("~/.cache")
    return Path(base, "ppll-run") if os.path.isabs(base) else None


def keep_compiled_code() -> None:
    """Have torch keep compiled code in the cache folder, unless the user has chosen another one.

    By itself it takes a folder of a predictable name in /tmp, which another user may have made, and
    makes it as soon as an optimizer is made. It makes ours as well, so this makes none. Processes
    that are started later inherit the choice.
    """
    if os.environ.get(INDUCTOR):
        return
    folder = cache_folder()
    if folder is not None and _can_be_made(folder / "inductor"):
        os.environ[INDUCTOR] = str(folder / "inductor")
        return
    # What this process has chosen is for those that it starts, so it goes with this one.
    from ppll_cli.errors import ConfigError
    from ppll_cli.leaves.scratch import lasting_folder

    with suppress(ConfigError):  # whatever needs temporary files will say so
        os.environ[INDUCTOR] = str(lasting_folder() / "inductor")


def _can_be_made(folder: Path) -> bool:
    """Whether there can be files in a folder that may not exist yet."""
    for place in (folder, *folder.parents):
        if place.exists():
            return place.is_dir() and os.access(place, os.W_OK | os.X_OK)
    return False
