"""Code of a run's parent process, which starts and watches the workers and gathers reports."""
