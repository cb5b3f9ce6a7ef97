"""The leaderboard as a web page: boards become JSON (`document`), JSON becomes HTML (`source`)."""
