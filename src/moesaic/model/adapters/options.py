"""The settings of an adapter, as the code uses them; config: `tune.adapter`."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from moesaic.errors import InputError

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True)
class Options:
    """One adapter."""

    method: str = "lateral"
    """lateral, two-linear, shared-linear or moe-lora, see lateral.METHODS."""
    rank: int = 8
    image_rank: int | None = None
    """Rank of the image branch; None: the same."""
    alpha: float = 16.0
    kernel: str = "plain"
    """plain, depthwise, analytic or mosaic."""
    size: int = 3
    """Taps on a side."""
    causal: bool = True
    functions: tuple[str, ...] = ("gabor",)
    """Of analytic channels."""
    share: float = 0.5
    """mosaic: share of the channels that are analytic."""
    experts: int = 4
    """moe-lora: how many."""
    targets: tuple[str, ...] = ATTENTION
    freeze_text: bool = False
    """The text branch stays at zero, so that text without an image is the base model's, bit for bit."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "functions", tuple(self.functions))
        object.__setattr__(self, "targets", tuple(self.targets))
        others = [name for name in self.targets if name not in ATTENTION]
        if others or not self.targets:
            raise InputError(
                f"adapter.targets: {', '.join(others) or 'empty'}; only attention projections ({', '.join(ATTENTION)}) see an image's tokens side by "
                "side: a routed expert gets them scattered, so a convolution there would have no grid"
            )
        if self.freeze_text and self.method not in ("lateral", "two-linear"):
            raise InputError(f"adapter.freeze_text: {self.method} has no branch of its own for text")
        if self.rank < 1 or (self.image_rank is not None and self.image_rank < 1):
            raise InputError("adapter.rank, adapter.image_rank: at least 1")

    def as_json(self) -> dict[str, Any]:
        """For a file."""
        return asdict(self) | {"functions": list(self.functions), "targets": list(self.targets)}

    def with_rank(self, rank: int) -> "Options":
        """The same at another rank (of both branches), with alpha in proportion, so that the update is scaled alike."""
        return replace(self, rank=rank, image_rank=None, alpha=self.alpha * rank / self.rank)
