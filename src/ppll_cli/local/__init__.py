"""Local learning methods: auxiliary networks and local losses.

"(our choice)" marks what the cited papers do not define, or define differently.
"""
