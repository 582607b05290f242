"""The pipeline on paper: chunks, routes, schedules, passes, simulator. Imports no torch."""
