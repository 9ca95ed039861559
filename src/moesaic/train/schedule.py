"""Learning rate as a function of the step alone, so that there is no scheduler state to lose."""

import math


def learning_rate(
    step: int, steps: int, peak: float, warmup: int, floor: float, decay: str = "cosine"
) -> float:
    """Linear warm-up, then along a cosine or a line from `peak` towards `floor * peak`, which the step after the last one would have.

    Args:
        step: optimizer step, from 0. steps: all of them. warmup: steps of warm-up. floor: final share of the peak. decay: cosine or linear.
    """
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - warmup)
    left = 1 - progress if decay == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return peak * (floor + (1 - floor) * left)


def place(step: int, steps: int, seen: int, limit: int | None) -> int:
    """The step of the schedule that a step is at: with a limit on tokens, the same share of `steps` as of the tokens.

    Args:
        step: optimizer step, from 0. steps: of the schedule. seen: tokens before this step. limit: tokens of the whole stage; None: steps count.
    """
    return step if limit is None else min(steps - 1, seen * steps // limit)
