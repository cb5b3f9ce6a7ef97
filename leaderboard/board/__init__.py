"""From run folders to a board: comparable rows, averaged over seeds, with what is missing said
beside them.
"""
