"""Balance loss `switch`: Switch Transformer (arXiv 2101.03961, eq. 4), E * sum_e f_e P_e; 1 when balanced, E when one expert gets everything."""

from torch import Tensor

from moesaic.train.balance.base import Decision


def loss(decision: Decision) -> Tensor:
    """f_e: share of the token slots, P_e: mean probability of the router."""
    load_E = decision.load_E
    share_E = load_E / load_E.sum().clamp_min(1.0)
    return load_E.numel() * (share_E * decision.probability_TE.mean(dim=0)).sum()
