"""The leaderboard: boards, statistics, charts, published numbers, packs, and the HTML page."""
