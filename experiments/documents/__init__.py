"""Number blocks and excerpts in Markdown files."""
