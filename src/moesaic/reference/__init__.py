"""Reference pages in Markdown, made from the schema and from the command line's parser; the documentation's build takes them in (docs/hooks.py)."""
