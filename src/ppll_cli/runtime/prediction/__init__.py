"""What a run is going to do, before it does: units are measured, instructions put on a clock."""
