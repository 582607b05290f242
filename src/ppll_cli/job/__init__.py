"""What the parent and the workers share: the job, its course of batches and marks, checkpoints."""
