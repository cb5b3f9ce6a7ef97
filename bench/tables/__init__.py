"""One table model, and its renderings: terminal, plain text, Markdown, CSV, JSON, LaTeX."""
