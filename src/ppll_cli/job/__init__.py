"""What parent and workers share: the job, its course of batches and marks, who holds what."""
