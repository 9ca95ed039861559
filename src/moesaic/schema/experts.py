"""How the dense FFN becomes experts."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from moesaic.schema.base import Count, Fraction, Positive, Strict


class Calibration(Strict):
    """Text on which activation statistics are taken (training blocks, never validation)."""

    tokens: Positive = 32_768
    """Tokens in all, shared evenly by the domains; part of them is held out, see `holdout`."""
    batch: Positive = 4
    """Blocks per forward pass."""
    holdout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Share of the blocks (at least one of each domain) that no fit sees; the audit uses them. 0: none, and no audit."""
    folds: Annotated[int, Field(ge=2)] = 2
    """Groups of blocks, each with text of all domains, that are left out in turn to choose the strength of the refit."""
    clusters: Literal["text", "domain"] = "text"
    """Data clusters of the importance-based splits: by the blocks' text, or by domain."""
    gradient_tokens: Positive = 16_384
    """Most tokens of the backward pass, which costs more than all others, when only sensitivities are wanted of it; all else is taken on `tokens`."""
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
    "random", "sequential", "clustering", "coactivation", "coactivation-sampled", "gradient", "importance", "sharing-inner",
    "sharing-inter", "activation", "copy", "drop",
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
    uncorrelated experts); calibrated = fitted on calibration text. Splits copy and drop: the k of times-k and unit
    is no more than the experts that make up one FFN (granularity)."""
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
    sharing: Sharing = Sharing()
    family: Literal["auto", "mixtral", "granitemoeshared", "qwen2_moe", "glm4_moe"] = "auto"
    """Architecture in transformers; auto: the first of these that can express the split."""
    dense_layers: list[Count] | Positive = []
    """Decoder layers that keep the parent's FFN, from 0; or how many, and those are left dense where a split is predicted to cost most."""
    layers: dict[str, dict[str, Any]] = {}
    """Other methods for some layers: '0', '3-5' or '2,4' -> keys of this section that are not sizes, e.g. {'0-1': {split: random}}."""
    calibration: Calibration = Calibration()

    @field_validator("layers")
    @classmethod
    def _layers_as_methods(cls, given: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Values as the keys of the section itself would read them (1e-4 is text in YAML 1.1)."""
        found = {}
        for key, changes in given.items():
            layer_numbers(key)
            unknown = sorted(set(changes) - set(Method.model_fields))
            if unknown:
                raise ValueError(
                    f"{key}.{unknown[0]}: not a key that may differ by layer; allowed: {', '.join(Method.model_fields)}"
                )
            try:
                own = Method.model_validate(changes)
            except ValidationError as error:
                first = error.errors()[0]
                place = ".".join(map(str, (key, *first["loc"])))
                raise ValueError(
                    f"{place}: {first['msg'][0].lower()}{first['msg'][1:]}, got {first['input']!r}"
                ) from None
            found[key] = own.model_dump(mode="json", exclude_unset=True)
        return found

    @model_validator(mode="after")
    def _consistent(self) -> "Experts":
        if self.per_token > self.experts:
            raise ValueError(f"per_token ({self.per_token}) may not exceed experts ({self.experts})")
        if self.shared and self.shared_experts:
            raise ValueError("shared and shared_experts say the same thing in two ways; give one")
        copying = self.split in ("copy", "drop")
        if isinstance(self.dense_layers, int) and self.family == "glm4_moe":
            raise ValueError("dense_layers: glm4_moe can leave only its first layers dense; list them")
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
            merged = Method.model_validate(
                {name: getattr(self, name) for name in Method.model_fields} | changes
            )
            if copying and (merged.reconstruct != "none" or merged.router != "random"):
                raise ValueError(
                    f"layers.{key}: copies of the FFN (split {merged.split}) need reconstruct: none and router: random"
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
            raise ValueError(f"'{text}' is not a layer or a range of layers, such as '0' or '3-5' or '2,4-6'")
        if int(last if dash else first) < int(first) or len(last if dash else first) > 4:
            raise ValueError(f"'{text}' ends before it begins, or beyond any model's layers")
        found += range(int(first), int(last if dash else first) + 1)
    return found
