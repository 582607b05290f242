"""Plans what each stage computes, and when: chunks, routes, schedules, simulator. No torch."""
