"""Settings, objects made from `_target_`, composition: no torch."""
