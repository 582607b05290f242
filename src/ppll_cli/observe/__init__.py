"""What users see of a run: metrics, progress, results."""
