"""Altair charts, defined once for the HTML page, for image files and for print."""
