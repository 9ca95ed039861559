"""Edge weights of the co-activation graph.

Shapes: F neurons, T tokens.
"""

import torch
from torch import Tensor


def raw(counts_FF: Tensor) -> Tensor:
    """Common activations (MoEfication, arXiv 2110.01786): dominated by how often each neuron fires."""
    out = counts_FF.clone()
    out.fill_diagonal_(0)
    return out


def excess(counts_FF: Tensor, tokens: int) -> Tensor:
    """Common activations above what independent neurons of the same rates would have: max(0, C_ij - f_i f_j / T)."""
    fired_F = counts_FF.diagonal()
    out = (counts_FF - torch.outer(fired_F, fired_F) / tokens).clamp_min(0)
    return out.fill_diagonal_(0)
