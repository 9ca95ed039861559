"""Learning rate as a function of the step and of the tokens seen, so that there is no scheduler state to lose."""

import math


def learning_rate(
    step: int,
    steps: int,
    peak: float,
    warmup: int,
    floor: float,
    decay: str = "cosine",
    share: float | None = None,
) -> float:
    """Linear warm-up, then along a cosine or a line from `peak` towards `floor * peak`, which the step after the last one would have.

    Args:
        step: optimizer step, from 0. steps: all of them. warmup: steps of warm-up. floor: final share of the peak. decay: cosine or linear.
        share: how much of the stage is behind, where its tokens say so and not its steps: the warm-up is still so many steps, and the fall is along the share.
    """
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - warmup) if share is None else share
    left = 1 - progress if decay == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return peak * (floor + (1 - floor) * left)


def share(seen: int, limit: int | None) -> float | None:
    """How much of a stage with a limit on tokens is behind; None: no limit, steps count. Args: seen: tokens before this step."""
    return None if limit is None else min(1.0, seen / limit)
