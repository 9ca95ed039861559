"""What the adapted layers of one model know of the tokens that run through it: this pass's layout, and the rows that a cache keeps."""

import types
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from moesaic.errors import InputError
from moesaic.model.adapters import layout
from moesaic.model.adapters.layout import ImageTokens, Layout, Open

KEY = "_moesaic_image_rows"
"""Attribute of transformers' cache object that our part of the cache is kept in: it lives, is copied and dies with it."""


@dataclass
class Past:
    """Our part of a cache."""

    length: int
    """Tokens seen."""
    open: Open
    rows: dict[int, Tensor] = field(default_factory=dict)
    """Number of the layer -> the last L positions' bottleneck values [B, L, r]."""

    def reorder(self, order_B: Tensor) -> None:
        """Beam search: rows change places."""
        self.open = Open(*(value.index_select(0, order_B.to(value.device)) for value in self.open))
        self.rows = {
            number: value.index_select(0, order_B.to(value.device)) for number, value in self.rows.items()
        }


class Sequences:
    """Hooks on the decoder: reads the ids before a pass, puts our rows beside the cache after it."""

    def __init__(self, tokens: ImageTokens, size: int, causal: bool):
        self.tokens, self.causal = tokens, causal
        self.offsets: Sequence[tuple[int, int]] = layout.taps(size, causal)
        self.kept = (size // 2) * (tokens.widest + 1) if causal else 0
        self.now: Layout | None = None
        self.past: Past | None = None
        self.fresh: Past | None = None
        self.caching = False
        self.handles: list[Any] = []

    def watch(self, decoder: nn.Module) -> None:
        """Register the hooks on the model's decoder (`model.base_model`)."""
        self.handles = [
            decoder.register_forward_pre_hook(self._before, with_kwargs=True),
            decoder.register_forward_hook(self._after, with_kwargs=True),
        ]

    def unwatch(self) -> None:
        """Remove the hooks."""
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def _before(self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids_BT = kwargs.get("input_ids", args[0] if args else None)
        if ids_BT is None:
            raise InputError(
                "adapter: text and image are told apart by token ids; call the model with input_ids, not with inputs_embeds"
            )
        cache = kwargs.get("past_key_values")
        seen = int(cache.get_seq_length()) if cache is not None else 0
        use = kwargs.get("use_cache")
        self.caching = cache is not None or (decoder.config.use_cache if use is None else bool(use))
        self.past = getattr(cache, KEY, None) if seen else None
        if seen and (
            self.past is None or self.past.length != seen or len(self.past.open.cells_B) != len(ids_BT)
        ):
            raise InputError(
                "adapter: this cache was not filled through the adapter, or was cut or selected from since, so the image rows before it are not known; "
                "run the sequence again from its beginning"
            )
        before = self.past.open if self.past is not None else None
        self.now = layout.find(ids_BT, self.tokens, self.offsets, self.kept, before)
        if not self.causal and self.caching and not self.now.complete:
            raise InputError(
                "adapter.causal: a centred kernel needs all cells of an image in one pass; give whole images in the prompt, or take a causal adapter to "
                "generate them"
            )
        self.fresh = Past(seen + ids_BT.shape[1], self.now.open) if self.caching else None

    def _after(self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        cache = getattr(output, "past_key_values", None)
        if self.fresh is None or cache is None:
            return
        setattr(cache, KEY, self.fresh)
        cache.reorder_cache = types.MethodType(_reorder, cache)

    def prepend(self, number: int, z_BTr: Tensor) -> Tensor:
        """A layer's bottleneck values of this pass behind the kept ones [B, L + T, r]; keeps the last L when there is a cache."""
        rows, _, width = z_BTr.shape
        kept_BLr = (
            self.past.rows[number] if self.past is not None else z_BTr.new_zeros(rows, self.kept, width)
        )
        padded_BSr = torch.cat([kept_BLr, z_BTr], dim=1)
        if self.fresh is not None:
            self.fresh.rows[number] = padded_BSr[:, padded_BSr.shape[1] - self.kept :].detach()
        return padded_BSr


def _reorder(cache: Any, order: Tensor) -> None:
    """Beam search reorders the cache's rows; ours go along."""
    type(cache).reorder_cache(cache, order)
    getattr(cache, KEY).reorder(order)


def check_adapted(model: nn.Module, targets: Tensor) -> None:
    """Refuse a loss on image tokens of a model whose adapter has a centred kernel; any other model is left alone."""
    from moesaic.model.adapters import attach

    layers = attach.adapted(model)
    if layers and layers[0].options.method == "lateral":
        check_targets(layers[0].sequences.tokens, layers[0].options.causal, targets)


def check_targets(tokens: ImageTokens, causal: bool, targets: Tensor) -> None:
    """The same, of a kernel: each cell's state has seen the cell that it is to predict.

    Raises:
        InputError: says what to do.
    """
    if not causal and bool(tokens.is_code(targets).any()):
        raise InputError(
            "adapter.causal: a loss falls on image tokens, and a centred kernel has already seen them; set it to true, or keep images out of the answers"
        )
