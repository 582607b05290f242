"""Local learning methods: auxiliary networks and local losses."""
