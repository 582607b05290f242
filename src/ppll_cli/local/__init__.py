"""Local learning methods: auxiliary networks and local losses.

"(our choice)" marks each detail that a cited paper does not define, or that differs from the paper.
"""
