"""Likelihood per domain, multiple choice through lm-evaluation-harness, routing."""
