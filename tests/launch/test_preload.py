"""The modules that a start-up imports.

Large parts of torch and torchvision take seconds to import.
"""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
import ppll_cli.launch.preload
print([name for name in ("torch._dynamo", "torchvision") if name in sys.modules])
import tempfile
from pathlib import Path
from types import SimpleNamespace
from hydra import initialize_config_dir
from ppll_cli.config import settings
from ppll_cli.config.composition import composed, register_resolvers
from ppll_cli.config.options import conf_dir
from ppll_cli.prepare.preparation import prepare
register_resolvers()
with initialize_config_dir(str(conf_dir()), version_base="1.3"):
    config, _ = composed(["data=digits", "model.dim=16", "model.heads=2", "device=cpu"])
prepare(settings.parse(config), tempfile.mkdtemp())
print("torchvision" in sys.modules)
"""


def test_starting_up_imports_no_compiler_and_no_torchvision(tmp_path: Path) -> None:
    """Workers are forked from the fork server, which must not import torch's compiler.

    No process imports torchvision.
    """
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True, timeout=200
    )
    assert result.stdout.split("\n")[:2] == ["[]", "False"], result.stderr
