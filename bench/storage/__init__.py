"""Files that survive a crash, folders that two processes share, and the reading of what strangers
wrote.
"""
