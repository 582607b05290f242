"""Local learning methods: auxiliary networks and local losses.

"(our choice)" follows what the cited papers do not define, or define differently.
"""
