"""Temporal reasoning: the tasks of Timo (arXiv 2406.14192) as generators with exact solvers, and loaders of published files."""
