"""Turn run records into a leaderboard: comparable groups, rows averaged over seeds, tables."""
