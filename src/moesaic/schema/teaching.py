"""Distillation: losses, offline teacher, students."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from moesaic.schema.base import Count, Fraction, NonNegative, Positive, Strict
from moesaic.schema.training import Mixture, Training

Share = Annotated[float, Field(gt=0.0, lt=1.0)]


class Jsd(Strict):
    beta: Share = 0.5
    """Weight of the teacher in the mixture: near 0 forward KL, near 1 reverse KL."""


class Akl(Strict):
    mu: Fraction = 0.5
    """Mass of the teacher's likeliest tokens that are the head."""


class Skew(Strict):
    alpha: Share = 0.1
    """Share of the one distribution that is mixed into the other."""


class Abkd(Strict):
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
    alpha: Annotated[float, Field(ge=0.01, lt=1.0)] = 0.1
    """Largest skew."""
    anchor: NonNegative = 0.0
    """Gap between teacher and student on the text's own token from which on the skew is alpha; 0: always alpha."""
    beta: Fraction = 0.5
    """Weight of the student's text; the teacher's has the rest."""
    beta_end: Fraction | None = None
    """beta at the end of training, reached linearly; null: it stays."""


class DpkdToken(Strict):
    beta: Annotated[float, Field(gt=0.0)] = 0.1


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


TokenLoss = Literal[
    "sft", "kd", "seqkd", "rkl", "jsd", "akl", "skl", "srkl", "cald", "abkd", "dpkd-token",
]  # fmt: skip


class Teaching(Training):
    """What stages with a teacher share."""

    loss: TokenLoss = "kd"
    """Distillation loss: kd is forward KL, rkl reverse KL, jsd between them; see docs/methods/distillation.md."""
    losses: LossOptions = LossOptions()
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    """Of student and teacher in the distillation loss, which is multiplied by its square."""
    teacher_experts: Literal["top-k", "all", "sampled"] = "top-k"
    """Experts of an MoE teacher that run: those its router chooses, all, or as many drawn from the router's distribution."""
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
        return self


class Pretrain(Teaching):
    mixture: Mixture = Mixture()
    document_mask: bool = True
    """Tokens of a packed block see only their own document; off, they see what happens to stand before it as well."""
    teacher: Literal["dense"] | None = None
    """dense: add a distillation loss from the dense parent on the same tokens."""
    teacher_weight: Fraction = 0.5
    """Share of the distillation loss; the rest is next-token cross entropy."""


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


class Distill(Teaching):
    teacher: Literal["dense", "moe"] = "moe"
    """dense: the dense parent; moe: the model of the stage before."""
    student: Student = Student(per_token=1)
    language_model: Fraction = 0.0
    """Share of next-token cross entropy in the loss."""
    data: Literal["text", "chat"] = "chat"
    """text: the corpus; chat: answers of the instruction data."""
    document_mask: bool = True
    """text: as in pretrain."""
    mixture: Mixture = Mixture(weights="size")
