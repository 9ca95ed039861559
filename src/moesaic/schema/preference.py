"""Preference tuning: sampling, rating, pairs."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from moesaic.schema.base import NonNegative, Positive, Strict
from moesaic.schema.training import Mixture, Training


class Sampling(Strict):
    """Answers of the tuned model to the temporal questions."""

    answers: Annotated[int, Field(ge=2)] = 5
    """Answers to each question."""
    temperature: Annotated[float, Field(gt=0.0)] = 0.8
    """Of the sampled answers."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 0.95
    """Nucleus sampling: only the most likely tokens that together have this probability."""
    new_tokens: Positive = 300
    """Most tokens of an answer; one that is cut off never counts as right."""
    max_prompt: Positive = 512
    """Longer questions are left out and counted."""
    batch: Positive = 40
    """Sequences decoded at once; changes nothing but speed and memory."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """What decodes; vllm: in a process and environment of its own, on a GPU (docs/howto/vllm.md)."""
    part: Positive = 64
    """Questions between two saved files: what a kill costs at most."""
    shards: Positive = 1
    """Jobs that share the questions of a round; the answers do not depend on it. Another number later makes the training on them run again (docs/howto/resume.md)."""


class Rubric(Strict):
    """The model as critic of its own answers; read where `pairs` is rubric."""

    read: Literal["text", "expected"] = "text"
    """text = sampled ratings, the score read out of what is written (the paper); expected = the mean of the scores 0 to 5 under the model's own
    probabilities of them as its first words (G-Eval, 2303.16634): no sampling, and never without a score. The keys down to new_tokens, and part, are for text."""
    ratings: Positive = 3
    """Sampled ratings per answer; their mean counts."""
    temperature: NonNegative = 0.8
    """Of the ratings; 0: the likeliest token each time."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 0.95
    """Nucleus sampling of the ratings."""
    new_tokens: Positive = 300
    """Most tokens of a rating."""
    batch: Positive = 40
    """As in sampling."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """As in sampling; of sampled ratings."""
    part: Positive = 64
    """Answers between two saved files."""
    template: str | None = None
    """A YAML file with the texts `right` and `wrong`, each with {question} and {answer}; null: the built-in one."""


class Preference(Training):
    """Preference tuning on temporal questions (Timo); runs where `stages` has it."""

    kinds: Annotated[list[Literal["math-time", "pure-time"]], Field(min_length=1)] = [
        "math-time",
        "pure-time",
    ]
    """Kinds of temporal questions that are sampled; the paper takes pure-time only."""
    items: Positive | None = None
    """Questions per task (the first ones); null: all of the training side."""
    rounds: Positive = 1
    """Sample, rate, train so often; each round samples from the model of the round before."""
    pairs: Literal["rubric", "random", "verifier"] = "rubric"
    """Which right and which wrong answer: rubric = the best-rated by the model's own critic (the paper); random; verifier = no critic, the
    likeliest of each under the model."""
    sampling: Sampling = Sampling()
    rubric: Rubric = Rubric()
    score_batch: Positive = 16
    """Answers per forward pass when log-probabilities are taken."""
    reference: Literal["stage", "round"] = "stage"
    """Reference of the loss: the model before this stage, or the one that the round began with; the same where rounds is 1."""
    loss: Literal["dpo", "ipo", "sft"] = "dpo"
    """dpo, ipo: on pairs; sft: cross entropy on the chosen answers, the baseline."""
    beta: Annotated[float, Field(gt=0.0)] = 0.1
    """Strength of the tie to the reference."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0
    """dpo: probability that a pair is the wrong way round."""
    length_normalised: bool = False
    """Log ratios per token instead of per answer."""
    nll: NonNegative = 0.0
    """Weight of the chosen answers' mean cross entropy beside the pair loss; keeps them from becoming unlikely."""
    validation: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.05
    """Share of the pairs kept for validation."""
    epochs: Annotated[float, Field(gt=0.0)] | None = None
    """Instead of `steps`: how often the pairs are gone through, since their number is known only when they are there."""
    mixture: Mixture = Mixture(weights="size")
    """By kind of question."""

    @model_validator(mode="after")
    def _mixture_observes_nothing(self) -> "Preference":
        if self.mixture.method not in ("static", "temperature"):
            raise ValueError(
                f"mixture.method: {self.mixture.method} measures losses or loads of text, not of pairs; take static or temperature"
            )
        return self
