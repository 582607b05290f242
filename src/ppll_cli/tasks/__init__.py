"""Tasks: each defines targets, a loss, a metric, and heads for auxiliary networks."""
