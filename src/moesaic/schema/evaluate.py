"""Evaluation and tracking."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from moesaic.schema.base import Count, Positive, Strict
from moesaic.schema.images import JudgeEndpoint


class Instructions(Strict):
    """Sampled answers to held-out questions of the instruction data."""

    sources: list[str] = []
    """Chat sources; empty: all."""
    items: Positive | None = None
    """Questions per source and side (development and test), the first ones; null: all."""
    seeds: Positive = 5
    """Answers to each question, each with its own decoding seed."""
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    """Of the sampled answers."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Nucleus sampling: only the most likely tokens that together have this probability."""
    new_tokens: Positive = 256
    """Most tokens of an answer; one that is cut off counts as it is."""
    max_prompt: Positive = 512
    """Longer questions are left out."""
    batch: Positive = 40
    """Sequences decoded at once; changes nothing but speed and memory."""
    part: Positive = 64
    """Questions between two saved files: what a kill costs at most."""


class Dola(Strict):
    """Contrast of the final layer with an earlier one (DoLa, docs/methods/reliability.md)."""

    layers: Literal["low", "high"] | Annotated[list[Count], Field(min_length=1)] = "high"
    """Candidates for the earlier layer: the even layers of the lower or the higher half, or a list (0: the embedding). The paper takes high for short answers."""
    alpha: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    """A token is plausible when its probability is at least this share of the likeliest one's."""
    norm: bool = False
    """The model's final norm at earlier layers too; false: as in the authors' code."""


class ReliabilityOptions(Strict):
    """Options of the reliability suite."""

    dola: Dola | None = None
    """Hallucination sets once more with DoLa, {} takes the defaults; null: without only."""


class Evaluate(Strict):
    """What is measured of the parent and of every stage."""

    tasks: list[str] = ["openbookqa_local", "piqa_local", "commonsenseqa_local"]
    """Tasks of the built-in suite or any lm-evaluation-harness task."""
    suites: list[Literal["temporal", "science", "reliability"]] = []
    """Suites of ours beside the tasks. temporal: the questions of data.temporal, by kind and by task; science: those of data.science, by split; reliability: the sets of data.reliability, by axis, and what the routers do on shifted text."""
    reliability: ReliabilityOptions = ReliabilityOptions()
    """Options of the suite reliability."""
    temporal_shots: Annotated[list[Count], Field(min_length=1)] = [0]
    """Examples in the prompts of the temporal suite; it is run once for each number, e.g. [0, 5]."""
    instructions: Instructions | None = None
    """ROUGE-L and exact match of answers to held-out instructions; {} takes the defaults, null: not measured."""
    include_path: str | None = None
    """Folder of your own lm-eval task files."""
    items: Positive | None = None
    """Items per task (the first ones); null: all."""
    shots: Count = 0
    """Examples in a task's prompts."""
    preset: Literal["llama-moe"] | None = None
    """Published tasks with their numbers of examples, beside `tasks`; their data come from a hub. llama-moe: SciQ, PIQA, WinoGrande, ARC easy, LogiQA and
    LAMBADA without, ARC challenge 25, HellaSwag 10, BoolQ 32, NQ 32, MMLU 5."""
    task_shots: dict[str, Count] = {}
    """Examples by task, where another number than `shots` or the preset's is wanted."""
    blocks: Positive | None = None
    """Validation blocks per domain; null: all."""
    batch: Positive = 8
    """Sequences per forward pass."""
    shards: Positive = 1
    """Jobs that the tasks of an evaluation are dealt out to; the scores do not depend on it. Another number later asks all tasks again (docs/howto/resume.md)."""
    bootstrap: Annotated[int, Field(ge=100)] = 1000
    """Resamples for the 95 % intervals."""

    conversations: Positive | None = None
    """With data.images: held-out conversations whose losses are taken, images and text apart; null: all."""
    pictures: Count = 4
    """With data.images: how many pictures are drawn and how many are described, for the report."""
    judge: JudgeEndpoint | None = None
    """With data.images: scores the drawn pictures by the four aspects of InterleavedBench; null: nobody does."""

    @field_validator("temporal_shots")
    @classmethod
    def _once(cls, value: list[int]) -> list[int]:
        if len(set(value)) < len(value):
            raise ValueError(
                f"each number at most once, got {value}: items counted twice make intervals too narrow"
            )
        return value


class Track(Strict):
    """MLflow."""

    uri: str = "sqlite:///mlflow.db"
    """MLflow tracking URI. With http(s) metrics are streamed while training."""
    experiment: str = "moesaic"
    """Name of the MLflow experiment."""
    register_models: bool = True
    """Put the last stage of each variant into MLflow's model registry as NAME-VARIANT, with signature and model card; the weights stay where they are."""
