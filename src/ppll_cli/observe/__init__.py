"""Shows a run to its users: metrics, progress, results."""
