"""What is left of a run: its record, its predictions, where it was made, and the store that holds
them.
"""
