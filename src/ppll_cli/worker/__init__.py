"""The worker process, which executes instructions on the chunks of its stage."""
