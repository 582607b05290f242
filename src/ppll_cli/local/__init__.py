"""Local learning: auxiliary networks and local losses."""
