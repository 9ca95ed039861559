"""Distillation on sampled text: whose questions, how answers are sampled, the preference loss."""

from typing import Annotated, Literal

from pydantic import Field

from moesaic.schema.base import NonNegative, Positive, Strict

OWN = "-student"
"""Ending of the domains whose text the student wrote."""


class Samples(Strict):
    """Answers of teacher and student to the questions of the instruction data; read where `data` is samples."""

    sources: list[str] = []
    """Chat sources whose questions are asked; empty: all."""
    prompts: Positive | None = None
    """Questions per source (the first ones of its training side); null: all."""
    answers: Positive = 1
    """Answers of each model to each question; the i-th of the teacher and the i-th of the student are a pair."""
    temperature: NonNegative = 1.0
    """Of the sampled answers; 0: the likeliest token each time."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Nucleus sampling: only the most likely tokens that together have this probability."""
    new_tokens: Positive = 256
    """Most tokens of an answer; one that is cut off is kept and counted."""
    max_prompt: Positive = 256
    """Longer questions are left out and counted."""
    batch: Positive = 32
    """Sequences decoded at once; changes nothing but speed and memory."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """What decodes; vllm: in a process and environment of its own, on a GPU (docs/howto/vllm.md)."""
    part: Positive = 64
    """Questions between two saved files: what a kill costs at most."""
    shards: Positive = 1
    """Jobs that share sampling and scoring; the pairs do not depend on it. Another number later makes the training on them run again (docs/howto/resume.md)."""
    text: Literal["teacher", "student", "both"] = "teacher"
    """Token losses only: whose answers are trained on. Rows of the student's are the domains SOURCE-student; cald takes them as the student's text."""


class PairOptions(Strict):
    """Preference distillation (dpkd, dpkd-guarded); see docs/methods/distillation.md."""

    beta: Annotated[float, Field(gt=0.0)] = 0.1
    """Weight of the log ratios of student and teacher in the reward."""
    length_normalised: bool = True
    """Rewards per token (the paper's eq. 9), or per answer (eq. 8)."""
    corpus: NonNegative = 0.0
    """Weight of cross entropy on a block of the corpus beside each pair (lambda of the paper's algorithm 1, which gives no value)."""
    anchor: NonNegative = 0.2
    """dpkd-guarded: weight of cross entropy on the teacher's answers."""
    floor: NonNegative = 0.0
    """dpkd-guarded: weight of what the student gives the teacher's answers less than the teacher does, nats per token."""
    clip: NonNegative = 2.0
    """dpkd-guarded: a pair whose margin has reached this pulls no more; the margin has beta in it."""
    refresh_drop: NonNegative | None = 1.0
    """dpkd-guarded: a round but the last ends early once the student's answers have lost so many nats per token; null: never."""
    alarm_drop: NonNegative | None = 3.0
    """Training stops with an error when the student's answers have lost so many nats per token since they were sampled; null: never."""
    alarm_patience: Positive = 5
    """Steps in a row beyond alarm_drop."""
