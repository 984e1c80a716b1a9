"""What all kernels share: schedules of steps, and masks and score_mods as programs on one tile."""
