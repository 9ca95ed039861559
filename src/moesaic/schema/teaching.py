"""Distillation: losses, offline teacher, students."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from moesaic.schema.base import Count, Fraction, NonNegative, Positive, Strict
from moesaic.schema.samples import PairOptions, Samples
from moesaic.schema.training import Mixture, Training

Share = Annotated[float, Field(gt=0.0, lt=1.0)]


class Jsd(Strict):
    """Loss `jsd`: Jensen-Shannon divergence."""

    beta: Share = 0.5
    """Weight of the teacher in the mixture: near 0 forward KL, near 1 reverse KL."""


class Akl(Strict):
    """Loss `akl`: adaptive KL."""

    mu: Fraction = 0.5
    """Mass of the teacher's likeliest tokens that are the head."""


class Skew(Strict):
    """Losses `skl` and `srkl`: skew KL and skew reverse KL."""

    alpha: Share = 0.1
    """Share of the one distribution that is mixed into the other."""


class Abkd(Strict):
    """Loss `abkd`: alpha-beta divergence."""

    alpha: NonNegative = 0.2
    """Exponent of the teacher's probability."""
    beta: NonNegative = 0.7
    """Exponent of the student's."""

    @model_validator(mode="after")
    def _not_both_zero(self) -> "Abkd":
        if self.alpha + self.beta == 0:
            raise ValueError("abkd: alpha and beta may not both be 0")
        return self


class Cald(Strict):
    """Loss `cald`: skew KL on the teacher's text, skew reverse KL on the student's."""

    alpha: Annotated[float, Field(ge=0.01, lt=1.0)] = 0.1
    """Largest skew."""
    anchor: NonNegative = 0.0
    """Gap between teacher and student on the text's own token from which on the skew is alpha; 0: always alpha."""
    beta: Fraction = 0.5
    """Weight of the student's text; the teacher's has the rest."""
    beta_end: Fraction | None = None
    """beta at the end of training, reached linearly; null: it stays."""


class DpkdToken(Strict):
    """Loss `dpkd-token`."""

    beta: Annotated[float, Field(gt=0.0)] = 0.1
    """Weight of the log ratios in the reward."""


class LossOptions(Strict):
    """Options of the distillation losses; each is read by the loss that bears its name (skew: skl and srkl)."""

    jsd: Jsd = Jsd()
    akl: Akl = Akl()
    skew: Skew = Skew()
    abkd: Abkd = Abkd()
    cald: Cald = Cald()
    dpkd_token: DpkdToken = DpkdToken()


class Offline(Strict):
    """The teacher's likeliest tokens, computed once by the step `teacher` and read while training."""

    top: Positive = 64
    """Tokens kept per position (k)."""
    tail: Count = 16
    """Tokens drawn from all the others, so that losses are right on average; 0: the others count as one outcome, which makes losses too small."""
    precision: Literal["float16", "float32"] = "float16"
    """Of the log-probabilities on disk."""
    shard_rows: Positive = 256
    """Rows of a Parquet shard: what a killed step loses at most."""
    max_rows: Positive | None = None
    """Rows per domain that are computed and trained on; null: all."""
    batch: Positive = 8
    """Rows per forward pass of the teacher."""


Loss = Literal[
    "sft", "kd", "seqkd", "rkl", "jsd", "akl", "skl", "srkl", "cald", "abkd", "dpkd-token", "dpkd", "dpkd-guarded",
]  # fmt: skip
PAIR_LOSSES = ("dpkd", "dpkd-guarded")
TEXT_LOSSES = ("sft", "seqkd")
"""Losses that read nothing of the teacher but its text."""


class Teaching(Training):
    """What stages with a teacher share."""

    loss: Loss = "kd"
    """Distillation loss: kd is forward KL, rkl reverse KL, jsd between them; dpkd and dpkd-guarded are on pairs of sampled answers."""
    losses: LossOptions = LossOptions()
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    """Of student and teacher in the distillation loss, which is multiplied by its square."""
    teacher_experts: Literal["top-k", "all", "sampled"] = "top-k"
    """Experts of an MoE teacher that run where its probabilities are compared: those its router chooses, all, or as many drawn from the router's
    distribution. Answers that it samples come from those its router chooses."""
    teacher_scale: Literal["mean", "sum"] = "mean"
    """teacher_experts: all: each expert keeps its mean weight (experts that are parts of one FFN), or the weights add up to what they did (copies)."""
    offline: Offline | None = None
    """Train on a cache of the teacher's likeliest tokens instead of the teacher itself."""
    student_text: list[str] = []
    """Domains or chat sources whose text the student wrote (cald)."""

    @model_validator(mode="after")
    def _teachable(self) -> "Teaching":
        if self.offline is not None and self.loss == "dpkd-token":
            raise ValueError(
                "offline: the loss dpkd-token needs the teacher's probability of any token, which a top-k cache does not have; take another loss"
            )
        if self.offline is not None and self.loss in TEXT_LOSSES:
            raise ValueError(
                f"offline: the loss {self.loss} reads nothing of the teacher but its text, and the cache would be made for nothing; leave it out"
            )
        if self.loss in PAIR_LOSSES and getattr(self, "data", None) != "samples":
            raise ValueError(
                f"loss: {self.loss} compares sampled answers of teacher and student; it is a loss of distill with data: samples"
            )
        return self


TAUGHT = (
    "loss",
    "losses",
    "temperature",
    "teacher_weight",
    "teacher_experts",
    "teacher_scale",
    "student_text",
)
"""Keys of `pretrain` that only a teacher gives a meaning; contradictions.untaught looks at them."""


class Pretrain(Teaching):
    """Continual pre-training on the packed text."""

    mixture: Mixture = Mixture()
    document_mask: bool = True
    """Tokens of a packed block see only their own document; off, they see what happens to stand before it as well."""
    teacher: Literal["dense"] | None = None
    """dense: add a distillation loss from the dense parent on the same tokens."""
    teacher_weight: Fraction = 0.5
    """Share of the distillation loss; the rest is next-token cross entropy."""

    @model_validator(mode="after")
    def _teacher_asked_for(self) -> "Pretrain":
        if self.offline is not None and self.teacher is None:
            raise ValueError(
                "offline: there is no teacher to keep the tokens of; set teacher: dense, or leave offline out"
            )
        if self.offline is not None and self.teacher_weight == 0.0:
            raise ValueError(
                "offline: teacher_weight is 0, and the teacher's cache would be made for nothing; leave it out, or give the teacher a weight"
            )
        return self


class Student(Strict):
    """What distillation trains."""

    per_token: Positive | None = None
    """Run only this many routed experts per token (a sparser MoE)."""
    drop_layers: list[Count] = []
    """Decoder layers left out, counted from 0 (a shallower model)."""
    of: Literal["moe", "dense"] = "moe"
    """moe: the student starts from the tuned MoE; dense: from the dense parent."""
    ffn: Positive | None = None
    """FFN width of a dense student: the neurons that write most to the residual stream on training text are kept, this many in each layer."""
    pruning_rows: Positive = 16
    """Training rows on which `ffn` measures the neurons."""

    @model_validator(mode="after")
    def _of_one_kind(self) -> "Student":
        if self.of == "dense" and self.per_token is not None:
            raise ValueError("per_token: a dense student has no experts; leave it out, or set of: moe")
        if self.of == "moe" and self.ffn is not None:
            raise ValueError("ffn: the width of a dense student; set of: dense, or leave it out")
        return self


class Distill(Teaching):
    """Distillation into the MoE or a sparser, smaller student."""

    teacher: Literal["dense", "moe"] = "moe"
    """dense: the dense parent; moe: the model of the stage before."""
    student: Student = Student(per_token=1)
    language_model: Fraction = 0.0
    """Share of next-token cross entropy in the loss."""
    data: Literal["text", "chat", "samples"] = "chat"
    """text: the corpus; chat: answers of the instruction data; samples: answers that teacher and student give to its questions."""
    document_mask: bool = True
    """text: as in pretrain."""
    packing: bool = True
    """chat: as in tune."""
    samples: Samples = Samples()
    rounds: Positive = 1
    """samples: sample from the student, score, train so often; each round starts from the student of the round before. 1: fixed pairs."""
    pairs: PairOptions = PairOptions()
    score_batch: Positive = 16
    """Answers per forward pass when log-probabilities are taken."""
    validation: Share = 0.1
    """samples: share of the questions kept for validation."""
    epochs: Annotated[float, Field(gt=0.0)] | None = None
    """samples: instead of `steps`, how often a round goes through its pairs, since their number is known only when they are there."""
    mixture: Mixture = Mixture(weights="size")

    @model_validator(mode="after")
    def _samples_fit(self) -> "Distill":
        if self.data != "samples":
            if self.rounds > 1:
                raise ValueError(f"rounds: {self.rounds} rounds need sampled answers; set data: samples")
            if self.epochs is not None:
                raise ValueError(
                    f"epochs: of pairs of sampled answers; with data: {self.data} give steps or tokens, or set data: samples"
                )
            if self.offline is not None and self.language_model == 1.0:
                raise ValueError(
                    "offline: language_model is 1, and the teacher's cache would be made for nothing; leave it out, or give the teacher a share"
                )
            return self
        if self.offline is not None:
            raise ValueError(
                "offline: the cache of a teacher's tokens is made of given text, not of samples; leave it out (pair losses need no teacher in memory)"
            )
        if self.mixture.method not in ("static", "temperature"):
            raise ValueError(
                f"mixture.method: {self.mixture.method} measures losses or loads of text, not of samples; take static or temperature"
            )
        if self.student_text:
            raise ValueError(
                "student_text: with data: samples it is known whose text each answer is; set samples.text: both"
            )
        if self.loss in PAIR_LOSSES:
            if self.teacher_experts != "top-k":
                raise ValueError(
                    f"teacher_experts: {self.teacher_experts} is for losses on the teacher's tokens; the answers and scores of {self.loss} come from the teacher as it is"
                )
            if self.language_model:
                raise ValueError(
                    f"language_model: of the loss {self.loss} the weight of the corpus is pairs.corpus"
                )
        elif self.loss in TEXT_LOSSES and self.samples.text != "teacher":
            raise ValueError(
                f"samples.text: {self.loss} on the student's own answers teaches it nothing; take teacher"
            )
        elif self.rounds > 1 and self.samples.text == "teacher":
            raise ValueError(
                "rounds: the teacher's answers are the same in every round; set samples.text to student or both, or raise steps"
            )
        return self
