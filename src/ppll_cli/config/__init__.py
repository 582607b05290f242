"""Settings, composition of configurations, and objects made from `_target_`. No torch."""
