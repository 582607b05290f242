"""The steps of `scripts/check-gpu`, which checks this program on the GPUs of this machine."""
