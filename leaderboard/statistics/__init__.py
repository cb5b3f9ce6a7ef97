"""What kept predictions can say: intervals, resampling, the curve, calibration, detection."""
