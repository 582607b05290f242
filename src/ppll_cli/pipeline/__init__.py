"""Plans what each stage computes, and when: chunks, routes, schedules. Imports no torch."""
