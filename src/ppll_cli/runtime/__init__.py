"""Workers, what they execute, and who watches them."""
