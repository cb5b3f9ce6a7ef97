"""Statistics of saved predictions: intervals, resampling, tests, calibration, detection."""
