"""The console scripts, and what only they need."""
