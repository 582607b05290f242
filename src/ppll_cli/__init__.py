"""ppll-run: pipeline-parallel local learning of vision models, from the command line."""

__version__ = "0.1.0"
