"""What every training stage has: optimizer, routers, engine, mixture."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from moesaic.schema.base import Count, Fraction, NonNegative, Positive, Strict

Below1 = Annotated[float, Field(ge=0.0, lt=1.0)]


class Optimizer(Strict):
    """AdamW and its schedule."""

    lr: Annotated[float, Field(gt=0.0)] = 2e-4
    """Largest learning rate, reached after the warm-up."""
    min_lr: Fraction = 0.1
    """Learning rate that the last step's is one step away from, as a share of lr."""
    decay: Literal["cosine", "linear"] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup: Count = 5
    """Steps of linear warm-up."""
    weight_decay: NonNegative = 0.1
    """AdamW's, on matrices only."""
    betas: tuple[Below1, Below1] = (0.9, 0.95)
    """AdamW's decay of the two moments."""
    clip: Annotated[float, Field(gt=0.0)] = 1.0
    """Largest gradient norm."""
    routers_first: Count = 0
    """Steps at the beginning in which only the routers are trained (by the same schedule)."""
    freeze_embeddings: bool = False
    """True: token embeddings and the output head stay as they are."""


class RouterTraining(Strict):
    """How the routers are trained."""

    balance: Literal["switch", "importance-load", "bias"] = "switch"
    """switch and importance-load: a loss of weight `balance`; bias: no loss, the router's bias is moved (needs experts.family: glm4_moe)."""
    bias_rate: NonNegative = 1e-3
    """bias: change of an expert's bias per step."""
    noise: Literal["none", "learned"] = "none"
    """learned: noisy top-k (Shazeer et al.); in training only."""
    capacity: Annotated[float, Field(gt=0.0)] | None = None
    """Most token slots of an expert, as a multiple of the mean; what is beyond is dropped in training. null: nothing is dropped."""
    learn_scale: bool = False
    """Train a factor on each layer's routed output; folded into the down projections at the end."""
    frozen: bool = False
    """Leave the routers' weights as they are; everything else is trained."""
    expert_dropout: Below1 = 0.0
    """Share of an expert's inner activations that are 0 in training (Switch Transformers, section 2.4)."""
    gate: Literal["linear", "tanh"] = "linear"
    """tanh: LLaMA-MoE's gate of two layers, for comparisons in scripts: a stage refuses it, because its model could not be saved."""

    @model_validator(mode="after")
    def _frozen_stays(self) -> "RouterTraining":
        if self.frozen and (self.noise != "none" or self.gate != "linear"):
            raise ValueError("frozen: leave noise and gate, which are trained with the router")
        return self


class Engine(Strict):
    """How a stage is run; none of it changes what is computed, and a checkpoint may be taken up with another."""

    kind: Literal["torch", "fsdp", "deepspeed"] = "torch"
    """torch: plain, and DDP over several ranks; fsdp: everything cut up over the ranks (FSDP2); deepspeed: ZeRO."""
    deepspeed: str = "zero1"
    """DeepSpeed's JSON: zero1, zero2, zero2-offload, zero3, zero3-offload, or a path of your own; batch sizes, clipping and the learning rate in it are replaced by the stage's own."""
    gradient_checkpointing: bool = False
    """Keep only the layers' inputs and compute the rest again in the backward pass: a third more time for much less memory."""
    experts: Literal["auto", "sorted", "sorted-compiled", "grouped_mm", "eager", "batched_mm", "sonicmoe"] = (
        "auto"
    )
    """What runs the experts: auto is what was measured fastest (on a CPU ours, sorted-compiled, or sorted where there is no C++ compiler; grouped_mm on a GPU); sonicmoe is a
    kernel of the hub for new GPUs."""


class Training(Strict):
    """What every training stage shares."""

    steps: Count = 1000
    """Optimizer steps."""
    tokens: Positive | None = None
    """End once so many tokens were trained on, over all ranks, and after `steps` at the latest; the learning rate follows the tokens."""
    batch: Positive = 8
    """Sequences per optimizer step, over all ranks."""
    micro_batch: Positive = 4
    """Sequences per forward pass and rank."""
    optimizer: Optimizer = Optimizer()
    balance: NonNegative = 0.01
    """Weight of the load-balance loss (router.balance), averaged over layers."""
    z_loss: NonNegative = 0.0
    """Weight of the router z-loss (ST-MoE, eq. 5)."""
    router: RouterTraining = RouterTraining()
    engine: Engine = Engine()
    save_every: Positive = 100
    """Steps between checkpoints; a killed run goes on from the last one."""
    keep_checkpoints: Positive = 2
    """How many checkpoints are kept while the stage runs."""
    keep_every: Positive | None = None
    """Checkpoints whose step is a multiple of this are kept beside them until the stage ends."""
    log_samples: bool = False
    """Write which rows each step drew to work/samples.jsonl."""
    validate_every: Positive | None = None
    """Steps between validation losses; null: at the end only."""
    validation_batches: Positive = 4
    """Micro-batches per domain in a validation."""

    @model_validator(mode="after")
    def _micro_divides(self) -> "Training":
        if self.batch % self.micro_batch:
            raise ValueError(f"micro_batch ({self.micro_batch}) must divide batch ({self.batch})")
        return self

    @model_validator(mode="after")
    def _backend_drops_out(self) -> "Training":
        if self.router.expert_dropout and self.engine.experts in ("eager", "sonicmoe"):
            raise ValueError(
                f"engine.experts: {self.engine.experts} has no place for router.expert_dropout ({self.router.expert_dropout}), "
                "it would train without; take auto, grouped_mm or batched_mm, or set expert_dropout to 0"
            )
        return self


class Probe(Strict):
    """gate-load, gate-load-robust, sentence-embedding: what is measured and how it moves the weights. null: the method's own value."""

    rows: Positive | None = None
    """Training rows of each dataset in a probe, others each time. null: 80 (gate-load, as published), 256 (the others)."""
    layers: Literal["last", "all"] | list[Count] | None = None
    """MoE layers that are read: the last one, all, or decoder layers by number. null: last (gate-load, as published), all (gate-load-robust)."""
    tokens: Literal["all", "answer"] = "all"
    """Which tokens count: all of a row, or those of the answers. Padding never does."""
    step_size: NonNegative | None = None
    """eta. null: 10 on the distance (gate-load, as published; sentence-embedding), 0.2 on the relative gap (gate-load-robust)."""
    smoothing: Fraction = 0.05
    """gate-load, sentence-embedding: c, share of the uniform mixture."""
    average: Below1 = 0.5
    """gate-load-robust: share of the earlier updates in the moving average."""
    deviations: NonNegative = 3.0
    """gate-load-robust: standard errors that a gap must exceed to count."""
    bootstrap: Annotated[int, Field(ge=20)] = 200
    """gate-load-robust: resamples for the standard error."""


class Mixture(Strict):
    """How often each domain is drawn."""

    method: Literal[
        "static",
        "temperature",
        "dynamic",
        "dynamic-paper",
        "ref-loss",
        "sentence-embedding",
        "gate-load",
        "gate-load-robust",
    ] = "static"
    """dynamic: more of what is further behind the dense parent (dynamic-paper, ref-loss: as LLaMA-MoE and MoE-SFT do it); gate-load: more of what uses other experts."""
    weights: Literal["uniform", "size", "llama", "sheared-llama"] | dict[str, NonNegative] = "uniform"
    """A preset, or weights by domain (normalised); dynamic methods start from it. llama and sheared-llama use each domain's `like`."""
    temperature: Annotated[float, Field(gt=0.0)] = 2.0
    """temperature: weights to the power 1/T."""
    max_epochs: Annotated[float, Field(gt=0.0)] | None = None
    """A domain that was gone through so often is not drawn any more, as long as another one is left."""
    every: Positive = 100
    """Dynamic, ref-loss and gate-load: steps between updates (a validation or a probe each)."""
    reference: (
        Literal["dense", "llama-2-7b", "sheared-llama-1.3b", "sheared-llama-2.7b"] | dict[str, NonNegative]
    ) = "dense"
    """Dynamic, ref-loss: losses to compare with. dense: the parent on the same validation blocks; or published ones, or nats by domain."""
    step_size: NonNegative = 1.0
    """Dynamic, ref-loss: eta, weight of the excess loss (nats) in the log weights."""
    clip: NonNegative = 0.5
    """dynamic: largest excess loss that counts, nats."""
    pull: Fraction = 0.1
    """dynamic, gate-load-robust: how much of the way back to the first weights each update goes."""
    floor: Fraction = 0.02
    """dynamic, gate-load-robust: smallest weight."""
    ceiling: Fraction = 0.8
    """dynamic, gate-load-robust: largest weight."""
    smoothing: Fraction = 1e-4
    """dynamic-paper, ref-loss: share of the uniform mixture."""
    probe: Probe = Probe()
