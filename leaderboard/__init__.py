"""From run folders to a leaderboard: comparable rows, averaged over seeds, with what is missing
said beside them.
"""
