"""From settings to a job: every check that needs no worker."""
