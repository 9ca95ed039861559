"""What sampling and scoring will cost: answers, tokens, FLOPs, memory, bytes on disk, of the stages that train on sampled text.

How many questions there are is known once their step is done as configured; before that the settings give the most there can be.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moesaic.evaluate.temporal.tasks import TASKS
from moesaic.flow import current
from moesaic.model import families, size
from moesaic.model.cost import flops_per_token
from moesaic.schema import Config
from moesaic.schema.teaching import PAIR_LOSSES
from moesaic.settings import sampled
from moesaic.train.memory import BILLION

CHARACTERS = 5
"""Bytes of a token's text and of its id in JSON, on average, each."""
SORTING = 36
"""Bytes per vocabulary entry and sequence while a token is chosen (generate/decode.py: probabilities, order, cumulative sums)."""


@dataclass
class Sampling:
    """Answers of one model, or the scores of pairs."""

    name: str
    questions: int | None
    """At most; None: not known before the data are there."""
    answers: int
    """To each question."""
    tokens_each: int
    """At most, prompt and answer."""
    flops_each: float
    """Of one answer, at most."""
    memory_gb: dict[str, float]
    rounds: int = 1

    @property
    def total(self) -> int | None:
        """Answers of all rounds."""
        return None if self.questions is None else self.questions * self.answers * self.rounds

    @property
    def bytes_each(self) -> int:
        """On disk, of one answer at most."""
        return self.tokens_each * 2 * CHARACTERS


def instruction_questions(config: Config) -> int | None:
    """Questions that distillation samples answers to; from the finished chat step, or distill.samples.prompts, None without either."""
    own = config.distill.samples
    sources = len(own.sources or {source.name for source in config.data.chat.sources})
    limit = None if own.prompts is None else own.prompts * sources
    done = current.shared(config, "chat")
    known = done.metrics["conversations"]["train"] if done and not own.sources else None
    return min((count for count in (limit, known) if count is not None), default=None)


def temporal_questions(config: Config) -> int | None:
    """Training questions about time that preference tuning asks, at most."""
    data, own = config.data.temporal, config.preference
    if data is None:
        return None
    names = [
        name
        for name in TASKS
        if TASKS[name].kind in own.kinds and (data.tasks == "all" or name in data.tasks)
    ]
    each = data.train * len(data.forms)
    limit = len(names) * min(each, own.items or each)
    done = current.shared(config, "temporal")
    return min(limit, done.metrics["items"]["train"]) if done else limit


def plan(config: Config, stage: str, teacher: Any, student: Any) -> list[Sampling]:
    """What a stage samples and scores. Args: config: a variant's. teacher, student: the classes, on the meta device."""
    if stage == "preference":
        return _preference(config, student)
    if stage != "distill" or not sampled(config):
        return []
    own, questions = config.distill, instruction_questions(config)
    how = own.samples.model_dump(mode="json")
    length = own.samples.max_prompt + own.samples.new_tokens
    scored = own.loss in PAIR_LOSSES
    found = []
    if scored or own.samples.text != "student":
        found.append(_sampling("teacher's answers", questions, own.samples.answers, how, teacher))
    if scored or own.samples.text != "teacher":
        found.append(_sampling("student's answers", questions, own.samples.answers, how, student, own.rounds))
    if scored:
        both = [2 * _forward(model, length) for model in (teacher, student)]
        largest = max((teacher, student), key=_weights)
        memory = _scoring(largest, own.score_batch * length)
        found.append(
            Sampling("scores of pairs, both texts under both", questions, own.samples.answers, 2 * length, sum(both), memory, own.rounds)
        )  # fmt: skip
    return found


def _preference(config: Config, model: Any) -> list[Sampling]:
    own, questions = config.preference, temporal_questions(config)
    how = own.sampling.model_dump(mode="json")
    found = [_sampling("answers", questions, own.sampling.answers, how, model, own.rounds)]
    length = own.sampling.max_prompt + own.sampling.new_tokens
    critic = own.rubric.read if own.pairs == "rubric" else None
    if critic == "text":
        rubric = own.rubric.model_dump(mode="json") | {"max_prompt": length}
        found.append(
            _sampling(
                "ratings", questions, own.sampling.answers * own.rubric.ratings, rubric, model, own.rounds
            )
        )
    scored = 2 if own.pairs != "verifier" else 2 + own.sampling.answers
    at_once = own.score_batch
    if critic == "expected":  # all scores of an answer are read off one pass
        scored += own.sampling.answers
        at_once = max(at_once, own.rubric.batch)
    flops, memory = _forward(model, length), _scoring(model, at_once * length)
    found.append(Sampling("log-probabilities", questions, scored, length, flops, memory, own.rounds))
    return found


def _sampling(
    name: str, questions: int | None, answers: int, how: Mapping[str, Any], model: Any, rounds: int = 1
) -> Sampling:
    """Args: how: max_prompt, new_tokens and batch."""
    length = how["max_prompt"] + how["new_tokens"]
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    # keys and values in bfloat16
    per_token = 2 * config.num_hidden_layers * heads * families.base.head_dim(config) * 2
    memory = {
        "weights": _weights(model), "cache": how["batch"] * length * per_token, "choosing": how["batch"] * config.vocab_size * SORTING,
        "base": BILLION,
    }  # fmt: skip
    return Sampling(name, questions, answers, length, _forward(model, length), _gb(memory), rounds)


def _scoring(model: Any, tokens: int) -> dict[str, float]:
    """Of one pass without gradient: hidden states of a few layers' widths, logits come in chunks."""
    wide = max(model.config.hidden_size * 4, model.config.intermediate_size * 3)
    return _gb({"weights": _weights(model), "activations": tokens * wide * 2, "base": BILLION})


def _gb(parts: dict[str, float]) -> dict[str, float]:
    return {name: value / BILLION for name, value in (parts | {"total": sum(parts.values())}).items()}


def _forward(model: Any, tokens: int) -> float:
    """FLOPs of so many tokens in one sequence."""
    return tokens * flops_per_token(model, tokens, training=False)


def _weights(model: Any) -> float:
    return float(size.count(model).total * model.dtype.itemsize)
