"""Moesaic: turn a dense LLM into a Mixture-of-Experts model, and everything around it, as one Snakemake workflow."""

__version__ = "0.1.0"
