"""Execute runs: fit methods, evaluate them and write their records."""
