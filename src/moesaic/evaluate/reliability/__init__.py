"""The reliability suite, after MoE-RBench (arXiv 2406.11353)."""
