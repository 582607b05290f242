"""Schedules: pure instruction streams. They know neither torch nor processes."""
