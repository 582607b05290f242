"""The schedules, one file each. A schedule says only in which order a stage computes."""
