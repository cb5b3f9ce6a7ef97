"""Options, progress display and signal handling that the commands share."""
