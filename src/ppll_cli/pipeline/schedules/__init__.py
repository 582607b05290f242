"""The schedules, one per file. A schedule decides only the order in which a stage computes."""
