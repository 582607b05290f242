"""The modules that a start-up imports.

Large parts of torch and torchvision take seconds to import.
"""

from tests.warm import passes_in_a_new_process

PROGRAM = """
import sys
import ppll_cli.launch.preload
assert not {"torch._dynamo", "torchvision"} & {*sys.modules}
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
assert "torchvision" not in sys.modules
"""


def test_starting_up_imports_no_compiler_and_no_torchvision() -> None:
    """Workers are forked from the fork server, which must not import torch's compiler.

    No process imports torchvision.
    """
    assert passes_in_a_new_process(PROGRAM)
