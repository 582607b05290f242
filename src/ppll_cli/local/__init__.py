"""Local learning methods: auxiliary networks and local losses.

"(our choice)" follows each detail that the cited papers do not define, or that differs from them.
"""
