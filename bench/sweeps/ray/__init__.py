"""Ray Tune as the dispatcher of a sweep, on this machine or on a cluster."""
