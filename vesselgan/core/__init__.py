"""What everything stands on: errors, atomic files, memory, processes, the version."""
