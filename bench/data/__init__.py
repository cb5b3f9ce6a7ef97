"""Cards, data readers, indexes, splits and the caches that make them fast."""
