"""Tasks. Each task defines targets, a loss, a metric, and heads for auxiliary networks."""
