"""A decoder layer whose FFN runs for some tokens only. Attention always runs, so that keys and values of every token are there for the tokens after it.

A router of one row per layer looks at the layer's input h (before norm and attention): s = sigmoid(r . h). The FFN runs for the tokens with s >= threshold and
is left out for the others (DLO, arXiv 2407.11030): y = h' + g FFN(norm h') or y = h', with g = 1 + gate (s - 1/2). In an MoE layer a left-out FFN is what a token
gets from an expert that computes nothing. Nothing is masked: tokens that run are gathered, go through the stock FFN as one shorter sequence, and are put back.

The stock classes stay as they are. A layer gets a submodule `depth_router`; a hook on the layer decides, and the `forward` of its FFN modules is replaced on the
instance. Routers start at zero, where s = 1/2 and g = 1: every token runs, and the model computes bit for bit what it did.

Shapes: B sequences, T tokens of the whole micro-batch, D model width, K tokens that run.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from moesaic.model.depth.labels import similarity

UNIT = 10**9
EPS = 1e-6


class DepthRouter(nn.Module):
    """One logit per token, in float32 whatever the model's type."""

    def __init__(self, width: int, dtype: torch.dtype, normed: bool, bias: bool, detach: bool):
        """Args: normed: the input is divided by its root mean square. detach: no gradient goes from the router into the model."""
        super().__init__()
        self.normed, self.detach = normed, detach
        self.weight = nn.Parameter(torch.zeros(1, width, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(1, dtype=dtype)) if bias else None
        # share of the tokens that run in training, in billionths: an integer survives a cast of the model to bfloat16
        self.register_buffer("budget", torch.tensor(UNIT))

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """Logits [T]."""
        with torch.autocast(hidden_BTD.device.type, enabled=False):
            x_TD = hidden_BTD.reshape(-1, hidden_BTD.shape[-1]).float()
            x_TD = x_TD.detach() if self.detach else x_TD
            if self.normed:
                x_TD = x_TD * torch.rsqrt(x_TD.square().mean(dim=1, keepdim=True) + EPS)
            logits_T = x_TD @ self.weight[0].float()
            return logits_T if self.bias is None else logits_T + self.bias.float()


class LayerSkip:
    """What one layer decides and did in the current forward pass."""

    def __init__(self, layer: Any, router: DepthRouter | None, threshold: float, gate: float):
        """Args: router: None leaves the FFN out for every token (static pruning). threshold: of s. gate: G of g = 1 + G (s - 1/2)."""
        self.router, self.threshold, self.gate = router, threshold, gate
        self.least = (
            math.inf
            if threshold >= 1
            else math.log(threshold / (1 - threshold))
            if threshold > 0
            else -math.inf
        )
        """Smallest logit that runs."""
        self.select: Callable[[LayerSkip, Tensor], Tensor] | None = None
        """(self, logits [T]) -> which tokens run [T]; in training, instead of the threshold."""
        self.share: float | None = 0.0 if router is None else None
        """Share of the tokens that ran on validation text, where it was measured."""
        self.recording: Tensor | None = None
        """Tokens whose FFN output is wanted, whether they run or not [T], for labels."""
        self.probing = False
        """True while the FFN runs for a label only: what hooks see then is not what the model computes."""
        self.every_gradient = False
        """True: all weights get a gradient, zero where no token ran; for engines that exchange gradients piece by piece and wait for each."""
        self.logits_T: Tensor | None = None
        self.kept_T: Tensor | None = None
        self.index_K: Tensor | None = None
        self.gate_K: Tensor | None = None
        self.mu_T: Tensor | None = None
        """Similarity of h' before and after the FFN, for recorded tokens."""
        self._state_TD: Tensor | None = None
        self._ffn_TD: Tensor | None = None
        if router is not None:
            layer.register_forward_pre_hook(self._decide, with_kwargs=True)
            layer.post_attention_layernorm.register_forward_pre_hook(self._look)
            layer.register_forward_hook(self._compare)
        for module in ffn_modules(layer):
            module.forward = functools.partial(self._run, module.forward)

    def narrow(self, values_T: Tensor) -> Tensor:
        """The tokens that run, of something per token."""
        assert self.index_K is not None
        return values_T[self.index_K]

    def ran(self, sequences: int) -> Tensor:
        """Share of each sequence's tokens that ran in the last forward pass [B]."""
        if self.kept_T is None:
            return torch.zeros(sequences)
        return self.kept_T.view(sequences, -1).float().mean(dim=1).cpu()

    def _decide(self, layer: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        assert self.router is not None
        hidden_BTD = args[0] if args else kwargs["hidden_states"]
        logits_T = layer.depth_router(hidden_BTD)
        clean_T = logits_T.detach()
        trained = self.select is not None and layer.training
        kept_T = self.select(self, clean_T) if trained and self.select is not None else clean_T >= self.least
        self.logits_T, self.kept_T, self._ffn_TD = logits_T, kept_T, None
        self.index_K = kept_T.nonzero()[:, 0]
        self.gate_K = 1.0 + self.gate * (logits_T[self.index_K].sigmoid() - 0.5) if self.gate else None

    def _look(self, _norm: nn.Module, args: Sequence[Any]) -> None:
        if self.recording is not None:
            self._state_TD = args[0].detach().reshape(-1, args[0].shape[-1])

    def _compare(self, _layer: nn.Module, _args: Any, _output: Any) -> None:
        if self.recording is not None:
            assert self._state_TD is not None
            assert self._ffn_TD is not None
            with torch.no_grad():
                self.mu_T = similarity(self._state_TD, self._ffn_TD)
            self._state_TD = self._ffn_TD = None

    def _run(self, inner: Callable[[Tensor], Tensor], x_BTD: Tensor) -> Tensor:
        """The FFN for the tokens that run; zero for the others."""
        if self.router is None:
            return torch.zeros_like(x_BTD)
        assert self.index_K is not None
        x_TD = x_BTD.reshape(-1, x_BTD.shape[-1])
        if len(self.index_K) == len(x_TD):
            out_TD = inner(x_BTD).reshape(x_TD.shape)
            if self.recording is not None:
                self._record(out_TD.detach())
            if self.gate_K is not None:
                out_TD = out_TD * self.gate_K[:, None].to(out_TD.dtype)
            return out_TD.reshape(x_BTD.shape)
        found_TD: Tensor | None = None
        if self.recording is not None:
            found_TD = self._probe(inner, x_TD)
        if not len(self.index_K):
            if found_TD is not None:
                self._record(found_TD)
            if self.every_gradient and torch.is_grad_enabled():
                return self._nothing(inner, x_TD).expand_as(x_TD).reshape(x_BTD.shape)
            return torch.zeros_like(x_BTD)
        out_KD = inner(x_TD.index_select(0, self.index_K)[None])[0]
        if found_TD is not None:
            self._record(found_TD.index_copy_(0, self.index_K, out_KD.detach().to(found_TD.dtype)))
        if self.gate_K is not None:
            out_KD = out_KD * self.gate_K[:, None].to(out_KD.dtype)
        out_TD = torch.zeros(x_TD.shape, dtype=out_KD.dtype, device=out_KD.device)
        return out_TD.index_copy(0, self.index_K, out_KD).reshape(x_BTD.shape)

    def _nothing(self, inner: Callable[[Tensor], Tensor], x_TD: Tensor) -> Tensor:
        """Zero [1, D], by way of all weights."""
        assert self.logits_T is not None
        self.probing = True
        try:
            out_1D = inner(x_TD[None, :1])[0]
        finally:
            self.probing = False
        return (out_1D + (self.logits_T[:1, None].to(out_1D.dtype) if self.gate else 0.0)) * 0.0

    @torch.no_grad()
    def _probe(self, inner: Callable[[Tensor], Tensor], x_TD: Tensor) -> Tensor:
        """FFN output of the recorded tokens that do not run, in a [T, D] that is zero elsewhere."""
        assert self.recording is not None
        assert self.kept_T is not None
        found_TD = torch.zeros_like(x_TD)
        index_P = (self.recording & ~self.kept_T).nonzero()[:, 0]
        if len(index_P):
            self.probing = True
            try:
                out_PD = inner(x_TD.detach().index_select(0, index_P)[None])[0]
            finally:
                self.probing = False
            found_TD.index_copy_(0, index_P, out_PD.to(found_TD.dtype))
        return found_TD

    def _record(self, out_TD: Tensor) -> None:
        # granitemoeshared adds two modules' outputs
        self._ffn_TD = out_TD if self._ffn_TD is None else self._ffn_TD + out_TD


def ffn_modules(layer: Any) -> list[Any]:
    """The modules of a decoder layer that make up its FFN; their outputs add up."""
    if hasattr(layer, "block_sparse_moe"):
        return [layer.block_sparse_moe, *([layer.shared_mlp] if layer.shared_mlp is not None else [])]
    return [layer.mlp]


def attach(
    model: Any,
    routed: Sequence[int],
    off: Sequence[int] = (),
    threshold: float = 0.5,
    gate: float = 0.05,
    normed: bool = True,
    bias: bool = True,
    detach: bool = False,
) -> dict[int, LayerSkip]:
    """Make some layers of a model skip, in place.

    Args:
        routed: layers that get a router. off: layers whose FFN never runs. The rest: see LayerSkip and DepthRouter.
    """
    weight = model.get_input_embeddings().weight
    for index in sorted({*routed, *off}):
        layer = model.model.layers[index]
        assert not hasattr(layer, "depth_skip"), f"layer {index} skips already"
        router = None
        if index not in set(off):
            router = DepthRouter(model.config.hidden_size, weight.dtype, normed, bias, detach).to(
                weight.device
            )
            layer.depth_router = router
            router.train(layer.training)
        layer.depth_skip = LayerSkip(layer, router, threshold, gate)
    return layers(model)


def layers(model: Any) -> dict[int, LayerSkip]:
    """The skipping layers of a model by number; empty for a standard one."""
    found = {index: getattr(layer, "depth_skip", None) for index, layer in enumerate(model.model.layers)}
    return {index: item for index, item in found.items() if item is not None}


def routed(model: Any) -> dict[int, LayerSkip]:
    """Those of them with a router."""
    return {index: item for index, item in layers(model).items() if item.router is not None}


def routers(model: Any) -> list[DepthRouter]:
    """The depth routers of a model, in order of depth."""
    return [item.router for item in layers(model).values() if item.router is not None]
