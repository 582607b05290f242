"""Runs on several machines: how launchers meet, and what they tell one another."""
