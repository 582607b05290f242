"""Tasks: what is learnt. Targets, loss, metric and the smallest head of each."""
