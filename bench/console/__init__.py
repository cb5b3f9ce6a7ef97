"""What the commands share: options, progress, and stops."""
