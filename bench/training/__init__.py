"""The loop, schedules, checkpoint and resume."""
