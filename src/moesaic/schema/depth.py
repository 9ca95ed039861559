"""New layers and skipped ones."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from moesaic.schema.base import Count, Fraction, NonNegative, Positive, Strict


class Expand(Strict):
    """More decoder layers, see docs/methods/depth.md."""

    method: Literal["zero", "copy", "slerp", "mean"] = "zero"
    """How a new layer starts from the one before it. zero: a copy that adds nothing yet, so that the model computes what it did; copy: as it is; slerp, mean:
    merged with the layer before that (dense models only)."""
    every: Positive | None = 4
    """A new layer after every so many; null when `after` is given."""
    after: list[Count] = []
    """Instead of `every`: the layers (counted from 0) behind which a new one goes."""

    @model_validator(mode="before")
    @classmethod
    def _after_alone(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("after") and "every" not in given:
            return given | {"every": None}
        return given

    @model_validator(mode="after")
    def _one_way(self) -> "Expand":
        if self.every is None and not self.after:
            raise ValueError("give every or after")
        if self.after and self.every is not None:
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
        if self.expand is not None and self.expand.method in ("slerp", "mean") and self.of == "stage":
            raise ValueError(
                f"expand.method: {self.expand.method} merges two FFNs, which an MoE's layers do not have; take zero or copy, or of: dense"
            )
        if static and self.expand is not None:
            raise ValueError(
                "skip.method static would take out what expand puts in, which adds nothing yet; give one of the two"
            )
        if self.train == "routers" and (self.skip is None or static):
            raise ValueError("train routers needs skip.method route")
        if self.train == "inserted" and self.expand is None:
            raise ValueError("train inserted needs expand")
        return self
