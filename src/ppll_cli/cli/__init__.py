"""The console scripts, and code that only they need."""
