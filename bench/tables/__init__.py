"""Tables and their formats: terminal, plain text, Markdown, CSV, JSON and LaTeX."""
