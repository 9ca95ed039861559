"""Balance loss `importance-load`: CV^2(importance) + CV^2(load), Shazeer et al. (arXiv 1701.06538, eqs. 7 and 9-11), as in LLaMA-MoE.

Importance is the sum of an expert's weights over the tokens. The load is the expected number of tokens, smooth in the router: the probability
that the expert would still be among the chosen ones if its noise were drawn again, with the others' as they are,
P(t, e) = Phi((clean_te - k-th largest of the other noisy logits) / sigma_te). That k-th of the others is the (k+1)-th of all for an expert that is
among the chosen ones and the k-th of all otherwise. LLaMA-MoE's code decides which of the two by the noise alone instead of the noisy
logit, and so often takes the wrong one.

Without noise in the router the load is a count that has no gradient, and importance pushes only among the experts that are chosen anyway. V-MoE
(Riquelme et al., arXiv 2106.05974, appendix A) takes the same estimate with a fixed sigma there, of noise that nobody draws. A fixed sigma is
blind to routers whose logits are far apart, so it is RELATIVE_SIGMA times the spread of the token's logits here (no gradient through it).
"""

import torch
from torch import Tensor

from moesaic.train.balance.base import Decision, squared_cv

EDGE = 1e-6
"""A score that no logit reaches counts as one that hardly any does."""
RELATIVE_SIGMA = 0.25
"""Of the estimate without noise, in standard deviations of a token's logits over the experts."""


def loss(decision: Decision) -> Tensor:
    """0 when balanced."""
    importance_E = torch.zeros_like(decision.logits_TE).scatter(1, decision.index_TK, decision.weight_TK)
    return squared_cv(importance_E.sum(dim=0)) + squared_cv(expected_load(decision))


def expected_load(decision: Decision) -> Tensor:
    """Expected number of tokens of each expert [E], differentiable. A bias of the choice moves the threshold of each expert."""
    noisy_TE, sigma_TE = decision.noisy_TE, decision.sigma_TE
    if noisy_TE is None or sigma_TE is None:
        noisy_TE = decision.logits_TE
        sigma_TE = RELATIVE_SIGMA * noisy_TE.detach().std(dim=1, keepdim=True).clamp_min(1e-6)
    chosen = decision.index_TK.shape[1]
    if chosen == noisy_TE.shape[1]:
        return torch.full_like(noisy_TE[0], float(len(noisy_TE)))
    bias_E = decision.bias_E if decision.bias_E is not None and bool(decision.bias_E.any()) else None
    ranked_TE = noisy_TE if bias_E is None else noisy_TE.sigmoid() + bias_E
    top_TK = ranked_TE.topk(chosen + 1, dim=1).values
    inside_TE = ranked_TE > top_TK[:, -1:]
    threshold_TE = torch.where(inside_TE, top_TK[:, -1:], top_TK[:, -2:-1])
    if bias_E is not None:  # the logit with which the expert's own score and bias would reach it
        threshold_TE = (threshold_TE - bias_E).clamp(EDGE, 1 - EDGE).logit()
    normal = torch.distributions.Normal(0.0, 1.0)
    return normal.cdf((decision.logits_TE - threshold_TE) / sigma_TE).sum(dim=0)
