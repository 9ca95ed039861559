"""What a teacher says about a batch: a resident model, or rows of a top-k cache. Both give the losses the same two log-probability matrices.

Shapes: B rows, T tokens, N target positions (in the order of the rows), V vocabulary, D model width, K cached tokens of a position, S sampled ones
of its tail, C outcomes (losses/base.py), L MoE layers, E experts.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from moesaic.errors import InputError
from moesaic.generate import decode
from moesaic.model import draws, families

if TYPE_CHECKING:
    from moesaic.train.objectives import Batch


@dataclass(frozen=True)
class Compared:
    """Student and teacher on the same outcomes, for a chunk of n positions."""

    log_q_NC: Tensor
    log_p_NC: Tensor
    rest: bool = False
    weight_NS: Tensor | None = None


class Taught(Protocol):
    """The teacher's probabilities at the target positions of one batch."""

    def compare(self, logits_NV: Tensor, chunk: slice, temperature: float) -> Compared:
        """Log-probabilities at a temperature, of the student's logits and of the teacher."""
        ...

    def nll(self, targets_N: Tensor, chunk: slice) -> Tensor:
        """-log p of the text's own tokens [n]."""
        ...


@dataclass(frozen=True)
class Full:
    """Of a resident teacher: logits are made from hidden states chunk by chunk."""

    hidden_ND: Tensor
    head_VD: Tensor

    @torch.no_grad()
    def _logits(self, chunk: slice) -> Tensor:
        with decode.precision(self.hidden_ND.device):
            return functional.linear(self.hidden_ND[chunk], self.head_VD).float()

    def compare(self, logits_NV: Tensor, chunk: slice, temperature: float) -> Compared:
        return Compared(
            functional.log_softmax(logits_NV / temperature, dim=1),
            functional.log_softmax(self._logits(chunk) / temperature, dim=1),
        )

    def nll(self, targets_N: Tensor, chunk: slice) -> Tensor:
        return functional.cross_entropy(self._logits(chunk), targets_N, reduction="none")


@dataclass(frozen=True)
class Cached:
    """Of an offline teacher: its K likeliest tokens, and S tokens drawn from the others or, with S = 0, the others as one outcome."""

    ids_NK: Tensor
    """Likeliest tokens, then the drawn ones [N, K + S]."""
    log_p_NK: Tensor
    """Their log-probabilities [N, K + S]."""
    log_rest_N: Tensor
    """Log of the mass of all tokens but the K likeliest."""
    target_N: Tensor
    """log p of the text's own tokens, at temperature 1."""
    sampled: int
    """S."""
    temperature: float
    """At which the probabilities were taken."""

    def compare(self, logits_NV: Tensor, chunk: slice, temperature: float) -> Compared:
        assert temperature == self.temperature, (
            f"cached at temperature {self.temperature}, asked at {temperature}"
        )
        ids_NK, log_p_NK, log_rest_N = self.ids_NK[chunk], self.log_p_NK[chunk], self.log_rest_N[chunk]
        scaled_NV = logits_NV / temperature
        log_q_NK = scaled_NV.gather(1, ids_NK) - scaled_NV.logsumexp(dim=1, keepdim=True)
        likeliest = ids_NK.shape[1] - self.sampled
        log_q_NC = torch.cat([log_q_NK, _rest(scaled_NV, ids_NK[:, :likeliest])], dim=1)
        # rounding to half precision left a sum that is not quite 1
        whole_NC = torch.cat([log_p_NK[:, :likeliest], log_rest_N[:, None]], dim=1)
        log_p_NC = torch.cat([log_p_NK, log_rest_N[:, None]], dim=1) - whole_NC.logsumexp(dim=1, keepdim=True)
        if not self.sampled:
            return Compared(log_q_NC, log_p_NC, rest=True)
        weight_NS = (log_rest_N[:, None] - log_p_NK[:, likeliest:] - math.log(self.sampled)).exp()
        return Compared(log_q_NC, log_p_NC, rest=True, weight_NS=weight_NS)

    def nll(self, targets_N: Tensor, chunk: slice) -> Tensor:
        return -self.target_N[chunk]


def _rest(logits_NV: Tensor, ids_NK: Tensor) -> Tensor:
    """Log of the mass of all tokens but some, without a difference of nearly equal numbers [N, 1]."""
    others_NV = logits_NV.scatter(1, ids_NK, -torch.inf)
    return others_NV.logsumexp(dim=1, keepdim=True) - logits_NV.logsumexp(dim=1, keepdim=True)


class Teacher(nn.Module):
    """A resident teacher. What its routers do is changed here; its weights are those of its folder."""

    def __init__(self, model: Any, experts: str = "top-k", scale: str = "mean"):
        """Args: experts: schema.Teaching.teacher_experts. scale: schema.Teaching.teacher_scale."""
        super().__init__()
        self.model = model
        self._seed = 0
        if experts != "top-k":
            if not families.is_moe(model):
                raise InputError(
                    f"teacher_experts: {experts} is for a teacher with experts; this one is dense, set it to top-k"
                )
            _all_experts(model, scale) if experts == "all" else self._sample()

    def hidden(self, batch: "Batch") -> Tensor:
        """Last hidden states [B, T, D], without gradient."""
        self._seed = batch.seed
        # FSDP and DeepSpeed cast the student alone
        with torch.no_grad(), decode.precision(self.model.device):
            return batch.hidden(self.model)

    def taught(self, batch: "Batch", where_BT: Tensor) -> Full:
        """Run the teacher on a batch. Args: where_BT: True at target positions."""
        return Full(self.hidden(batch)[where_BT], self.model.get_output_embeddings().weight)

    def _sample(self) -> None:
        """Draw the experts of each token from the router's distribution, without replacement (arXiv 2502.12947, knowledge augmentation).

        The same batch seed draws the same experts, so that resumed runs see what the first saw.
        """
        for layer, part in enumerate(families.parts(self.model)):
            part.router.register_forward_hook(self._hook(layer, part.family.scores))

    def _hook(self, layer: int, scores: str) -> Any:
        def draw(
            router: Any, inputs: Any, output: tuple[Tensor, Tensor, Tensor]
        ) -> tuple[Tensor, Tensor, Tensor]:
            logits_TE, weight_TK, index_TK = output
            own_TE = logits_TE.float()
            log_p_TE = functional.logsigmoid(own_TE) if scores == "sigmoid" else own_TE
            stream = draws.generator(own_TE.device, self._seed, layer)
            uniform_TE = torch.rand(own_TE.shape, generator=stream, device=own_TE.device)
            gumbel_TE = -(-uniform_TE.clamp(1e-20, 1 - 1e-7).log()).log()
            drawn_TK = (log_p_TE + gumbel_TE).topk(index_TK.shape[1], dim=1).indices
            made_TK = families.chosen_weights(own_TE.gather(1, drawn_TK), scores)
            made_TK = made_TK * getattr(router, "routed_scaling_factor", 1.0)
            return logits_TE, made_TK.to(weight_TK.dtype), drawn_TK

        return draw


@torch.no_grad()
def _all_experts(model: Any, scale: str) -> None:
    """Every expert runs for every token. Args: scale: sum: their weights add up to what they did; mean: each keeps its mean weight."""
    before = model.config.num_experts_per_tok
    routed = next(families.parts(model)).router.weight.shape[0]
    families.set_per_token(model, routed)
    if scale == "mean":
        for part in families.parts(model):
            part.experts.down_proj.mul_(routed / before)


@contextlib.contextmanager
def without_layer(model: Any, index: int) -> Iterator[None]:
    """Leave out one decoder layer for a while: a student that no one had to train, to measure with."""
    layers, count = model.model.layers, model.config.num_hidden_layers
    model.model.layers = nn.ModuleList([layer for i, layer in enumerate(layers) if i != index])
    model.config.num_hidden_layers = count - 1
    try:
        yield
    finally:
        model.model.layers, model.config.num_hidden_layers = layers, count
