"""Supervised tuning, of all weights or of an adapter."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from moesaic.schema.base import Fraction, Positive, Strict
from moesaic.schema.depth import Depth
from moesaic.schema.training import Mixture, Training


class Adapter(Strict):
    """Low-rank updates instead of full tuning (docs/methods/lora.md; the methods for pictures: docs/methods/lateral-lora.md)."""

    method: Literal["lateral", "two-linear", "shared-linear", "moe-lora", "lora"] = "lateral"
    """lateral: linear on text, convolutional on images; two-linear: by modality, no convolution; shared-linear: one for all; moe-lora: a learned mixture.
    lora: peft's, on attention and, with `expert_rank`, on experts; folded into the model at the end."""
    rank: Positive = 8
    """Width of the adapter's bottleneck."""
    expert_rank: Positive | None = None
    """lora: rank on every routed expert's own weights, at the same scale; null: experts stay as they are."""
    image_rank: Positive | None = None
    """Rank of the image branch; null: the same."""
    budget: Positive | None = None
    """Learned numbers of the adapter: the rank that comes closest (within 5 %) is taken instead of `rank`, so that methods are compared at one size."""
    alpha: Annotated[float, Field(gt=0.0)] = 16.0
    """The update is scaled by alpha / rank; with a budget, as it would be at `rank`."""
    kernel: Literal["plain", "depthwise", "analytic", "mosaic"] = "plain"
    """lateral: the convolution between the two factors."""
    size: Literal[1, 3, 5, 7] = 3
    """lateral: taps on a side."""
    causal: bool = True
    """lateral. false: a centred kernel, for images on which no loss falls."""
    functions: Annotated[list[Literal["gabor", "gaussian", "laplacian"]], Field(min_length=1)] = ["gabor"]
    """Kernels analytic and mosaic: which functions, in turn."""
    share: Fraction = 0.5
    """Kernel mosaic: share of the channels that are analytic."""
    experts: Positive = 4
    """moe-lora: how many."""
    targets: Annotated[list[Literal["q_proj", "k_proj", "v_proj", "o_proj"]], Field(min_length=1)] = [
        "q_proj", "k_proj", "v_proj", "o_proj",
    ]  # fmt: skip
    """Attention projections that are adapted; for pictures never an expert, which gets an image's tokens scattered."""
    freeze_text: bool = False
    """lateral, two-linear: only images learn; what the model does on text without an image stays as it is, to the last bit."""

    @model_validator(mode="after")
    def _apart(self) -> "Adapter":
        if self.freeze_text and not self.routes:
            raise ValueError(
                f"freeze_text: {self.method} has no branch of its own for text; take lateral or two-linear"
            )
        if self.expert_rank and self.method != "lora":
            raise ValueError(f"expert_rank: {self.method} is for attention alone; take lora")
        if self.method == "lora" and (self.budget or self.image_rank):
            raise ValueError("lora: has neither a budget nor an image_rank; set rank and expert_rank")
        if len(set(self.targets)) < len(self.targets):
            raise ValueError("targets: each projection at most once")
        if self.budget and self.image_rank:
            raise ValueError(
                "image_rank: with a budget both branches get the same rank; leave one of the two"
            )
        return self

    @property
    def routes(self) -> bool:
        """True for the methods that tell text from images."""
        return self.method in ("lateral", "two-linear")


class Tune(Training):
    """Supervised tuning on conversations."""

    mixture: Mixture = Mixture(weights="size")
    packing: bool = True
    """Several conversations in one sequence, each seeing itself alone, instead of padding to the longest: the same losses, faster. Not with depth or an adapter for pictures."""
    depth: Depth | None = None
    """Dynamic layer operations: more layers, and layers that tokens skip. null: the model's depth stays as it is."""
    adapter: Adapter | None = None
    """Train an adapter (and the embeddings of image tokens) instead of all weights; null: all weights."""

    @model_validator(mode="after")
    def _adapter_fits(self) -> "Tune":
        if self.adapter is None:
            return self
        if self.depth is not None:
            raise ValueError("adapter: cannot go with depth; take one of the two")
        if self.engine.kind != "torch":
            raise ValueError(f"adapter: needs engine.kind torch, not {self.engine.kind}")
        if (
            self.adapter.method != "lora"
            and self.optimizer.weight_decay
            and not self.optimizer.freeze_embeddings
        ):
            raise ValueError(
                "adapter: set optimizer.weight_decay to 0 (it would shrink the text's embeddings while those of image tokens learn), "
                "or optimizer.freeze_embeddings to true"
            )
        if self.optimizer.routers_first:
            raise ValueError("adapter: the model's routers are frozen; leave optimizer.routers_first at 0")
        if self.router.expert_dropout:
            raise ValueError("adapter: leave router.expert_dropout at 0, the experts' own weights are frozen")
        if self.router.noise != "none" or self.router.learn_scale or self.router.balance == "bias":
            raise ValueError(
                "adapter: the model's routers are frozen; leave router.noise, router.learn_scale and router.balance: bias"
            )
        return self
