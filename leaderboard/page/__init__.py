"""The leaderboard as one self-contained web page: boards to a document (`document`), the document
to a file (`build`).
"""
