"""The schedules, one file each: the order in which a stage computes, and nothing else."""
