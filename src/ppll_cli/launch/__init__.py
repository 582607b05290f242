"""Code of a run's parent process, which starts the workers, watches them, and writes results."""
