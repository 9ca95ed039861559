"""Names of what the evaluation of instructions measures (instructions.py), for the report too."""

import math

NAME = "instructions"
SIDES = ("dev", "test")
BINS = (("short", 0, 30), ("medium", 31, 70), ("long", 71, math.inf))
"""Words of the reference answer, as in DPKD's table of exact match by length (arXiv 2406.19774)."""
