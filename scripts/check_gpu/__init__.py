"""What `scripts/check-gpu` runs: is the program right and fast on the GPUs of this machine?"""
