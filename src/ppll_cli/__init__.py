"""ppll-run: pipeline-parallel local learning of vision models, from the command line."""

from ppll_cli.cache import keep_compiled_code

__version__ = "0.1.0"

# Before anything imports torch's compiler, in whatever process: making an optimizer does.
keep_compiled_code()
