"""Chunks, routes, schedules, passes and the simulator, all as plain data. Imports no torch."""
