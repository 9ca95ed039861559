"""DoLa: the final layer's log-probabilities in contrast with those of an earlier layer (Chuang et al. 2024, arXiv 2309.03883).

What a late layer adds to an early one is taken for knowledge, what both agree on for surface habit. For each predicted token the
premature layer is, of the candidates, the one whose distribution is furthest from the final one (Jensen-Shannon divergence, equation 2); the
scores are the difference of the log-probabilities among tokens that the final layer finds plausible (equations 3 and 4).

Shapes: N predicted tokens, V vocabulary, B sequences, T tokens, D model width.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moesaic.errors import InputError
from moesaic.evaluate import prefix
from moesaic.evaluate.prefix import Packed, Request, SharedPrefixLM

IMPLAUSIBLE = -1000.0
"""Score of a token outside the plausible set, as in the authors' code: finite, so that sums over a continuation stay comparable."""
WINDOW = 20
"""Width of the buckets of a model with more than 40 layers."""
CHUNK = 64
"""Rows contrasted at once: a few [64, V] tensors in float32."""


@dataclass(frozen=True)
class Dola:
    """How the contrast is made, for one model."""

    layers: tuple[int, ...]
    """Candidates for the premature layer: j is the state after j blocks, 0 the embedding."""
    alpha: float = 0.1
    """A token is plausible when its probability is at least this share of the likeliest one's."""
    norm: bool = False
    """Put the model's final norm before the output matrix at early layers too; the authors' code does not."""

    @classmethod
    def of(cls, settings: Mapping[str, Any], model: Any) -> "Dola":
        """From schema.Dola as a dict. Raises InputError when a layer is not one of the model's."""
        count = len(model.base_model.layers)
        tied = bool(getattr(model.config, "tie_word_embeddings", False))
        return cls(bucket(settings["layers"], count, tied), settings["alpha"], settings["norm"])


def bucket(layers: str | Sequence[int], count: int, tied: bool) -> tuple[int, ...]:
    """The candidates: even layers of the lower or of the higher half, or those that are listed.

    Args:
        count: decoder layers; the final one is never a candidate. tied: with tied embeddings layer 0 gives back its own token, so that `low`
            begins at 2, as in transformers.
    """
    if not isinstance(layers, str):
        wrong = [layer for layer in layers if not 0 <= layer < count]
        if wrong:
            raise InputError(
                f"evaluate.reliability.dola.layers: {wrong[0]} is not between 0 and {count - 1}, the layers before the final one of this model"
            )
        return tuple(sorted(set(layers)))
    wide = count > 2 * WINDOW
    if layers == "low":
        found = range(2 if tied else 0, WINDOW if wide else count // 2, 2)
    else:
        start = count - WINDOW if wide else count // 2
        found = range(start + start % 2, count, 2)
    return tuple(found) or (count // 2,)


def contrast(final_NV: Tensor, early: Iterable[Tensor], alpha: float) -> tuple[Tensor, Tensor]:
    """Scores of all tokens and which candidate was chosen.

    Args:
        final_NV: logits of the final layer. early: logits [N, V] of each candidate, in order.

    Returns:
        [N, V]: log-softmax of log q_N - log q_j, and IMPLAUSIBLE where q_N < alpha max q_N; [N]: index of the candidate.
    """
    final_NV = final_NV.float().log_softmax(-1)
    best_NV = torch.zeros_like(final_NV)
    furthest_N = final_NV.new_full((len(final_NV),), -1.0)
    chosen_N = torch.zeros(len(final_NV), dtype=torch.long, device=final_NV.device)
    for index, logits_NV in enumerate(early):
        early_NV = logits_NV.float().log_softmax(-1)
        apart_N = divergence(final_NV, early_NV)
        further_N = apart_N > furthest_N
        furthest_N = torch.where(further_N, apart_N, furthest_N)
        chosen_N = torch.where(further_N, index, chosen_N)
        best_NV = torch.where(further_N[:, None], early_NV, best_NV)
    scores_NV = (final_NV - best_NV).log_softmax(-1)
    least_N1 = final_NV.amax(-1, keepdim=True) + math.log(alpha)
    return scores_NV.masked_fill(final_NV < least_N1, IMPLAUSIBLE), chosen_N


def divergence(p_NV: Tensor, q_NV: Tensor) -> Tensor:
    """Jensen-Shannon divergence of distributions given as log-probabilities, in nats [N]: at least 0, at most ln 2."""
    middle_NV = torch.logaddexp(p_NV, q_NV) - math.log(2)
    sides = [(side_NV.exp() * (side_NV - middle_NV)).sum(-1) for side_NV in (p_NV, q_NV)]
    return (sides[0] + sides[1]) / 2


class Exits:
    """While open: the states that go into chosen decoder layers, of the last forward pass."""

    def __init__(self, model: Any, layers: Sequence[int]):
        self.model, self.layers = model, layers
        self.hidden: dict[int, Tensor] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> "Exits":
        for layer in self.layers:
            block = self.model.base_model.layers[layer]
            self._handles.append(block.register_forward_pre_hook(self._keep(layer), with_kwargs=True))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.hidden.clear()

    def _keep(self, layer: int) -> Callable[..., None]:
        def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.hidden[layer] = args[0] if args else kwargs["hidden_states"]

        return hook


def early_logits(model: Any, hidden_ND: Tensor, norm: bool) -> Tensor:
    """Logits of a state between two layers, by the model's own output matrix [N, V]."""
    state_ND = model.base_model.norm(hidden_ND) if norm else hidden_ND
    return prefix.logits(model, state_ND)


class DolaLM(SharedPrefixLM):
    """lm-eval's model with DoLa, in likelihoods and in generation alike."""

    def __init__(
        self, model: Any, tokenizer: Any, batch: int, how: Dola, name: str = "tasks", chat: bool = False
    ):
        super().__init__(model, tokenizer, batch, name, chat)
        self.how = how

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = True, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        attention = self.model.config._attn_implementation
        if attention not in ("sdpa", "eager"):
            raise InputError(
                f"evaluate.reliability.dola: attention {attention} takes no mask per pair of tokens; load the model with sdpa or eager"
            )
        # Too long a prompt loses its beginning, as in lm-eval.
        cut = [
            (text, prompt[max(0, len(prompt) + len(found) - self.max_length - 1) :], found)
            for text, prompt, found in requests
        ]
        return super()._loglikelihood_tokens(cut, disable_tqdm, override_bs)

    def score(self, group: list[Packed]) -> dict[int, tuple[float, bool]]:
        with Exits(self.model, self.how.layers) as exits:

            def predict(hidden_ND: Tensor, rows_N: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
                early = [exits.hidden[layer].flatten(0, 1)[rows_N] for layer in self.how.layers]
                return self._contrasted(hidden_ND[rows_N], early, targets_N)

            return prefix.score(self.model, group, predict)

    def _contrasted(
        self, final_ND: Tensor, early: Sequence[Tensor], targets_N: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Nats of the targets and whether they have the highest score, both [N]."""
        nats, best = [], []
        for start in range(0, len(final_ND), CHUNK):
            rows = slice(start, start + CHUNK)
            logits = (early_logits(self.model, state_ND[rows], self.how.norm) for state_ND in early)
            scores_NV, _ = contrast(prefix.logits(self.model, final_ND[rows]), logits, self.how.alpha)
            wanted_N = scores_NV.gather(1, targets_N[rows, None])[:, 0]
            nats.append(-wanted_N)
            best.append(wanted_N >= scores_NV.amax(-1))
        return torch.cat(nats), torch.cat(best)

    def _model_generate(self, context: Any, max_length: int, stop: list[str], **kwargs: Any) -> Tensor:
        from transformers import LogitsProcessorList

        with Exits(self.model, self.how.layers) as exits:

            def processor(_ids: Tensor, logits_BV: Tensor) -> Tensor:
                early = (
                    early_logits(self.model, exits.hidden[layer][:, -1], self.how.norm)
                    for layer in self.how.layers
                )
                return contrast(logits_BV, early, self.how.alpha)[0]

            given = LogitsProcessorList([processor])
            return super()._model_generate(context, max_length, stop, logits_processor=given, **kwargs)
