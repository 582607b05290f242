"""What units cost, measured, and the speed that follows."""
