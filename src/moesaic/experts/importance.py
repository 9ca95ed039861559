"""Importance of every neuron for every cluster of text, by one backward pass that holds one layer at a time.

v_j = mean over the cluster's tokens of |h_j * dL/dh_j|, L the mean next-token loss of the dense parent (LLaMA-MoE, arXiv 2406.16554;
first-order Taylor as in SNIP). The forward pass keeps the input of every layer in one memory-mapped file; the backward pass runs each
layer again with gradients and hands dL/d(input) down, so memory does not grow with depth.

Shapes: N blocks, B blocks of a batch, T tokens, D model width, F dense FFN width, L layers, C clusters.
"""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from moesaic.errors import InputError
from moesaic.experts import calibration
from moesaic.experts.stream import mapped
from moesaic.flow import files
from moesaic.flow.progress import Progress
from moesaic.model.lazy import LazyModel, attend, ffn_of


def measure(
    dense: LazyModel, ids_NT: Tensor, cluster_N: Tensor, clusters: int, batch: int, work: Path
) -> Tensor:
    """Importance [L, C, F]; kept in `work/importance.safetensors`, from where a rerun takes it.

    Raises:
        InputError: a cluster without text, or a loss that is not finite.
    """
    from safetensors.torch import load_file, save_file

    path = work / "importance.safetensors"
    if path.exists():
        return load_file(path)["importance"]
    empty = [cluster for cluster in range(clusters) if not bool((cluster_N == cluster).any())]
    if empty:
        raise InputError(
            f"experts.calibration.tokens: no calibration text falls into cluster {empty[0]} of {clusters}; take more tokens or fewer experts"
        )
    blocks, length = ids_NT.shape
    inputs_LNTD = mapped(
        work / "layer-inputs.bin", (dense.layers + 1, blocks, length, dense.config.hidden_size)
    )
    positions, parts = dense.positions(length), calibration.batches(torch.zeros(blocks), batch)
    progress = Progress("importance of neurons", 2 * dense.layers, "layers")
    with torch.no_grad():
        inputs_LNTD[0] = dense.embedding()[ids_NT]
        for index in range(dense.layers):
            block = dense.layer(index)
            for part in parts:
                after, x = attend(block, inputs_LNTD[index, part], positions)
                inputs_LNTD[index + 1, part] = after + block.mlp(x)
            progress.update(detail="forward")
    gradient_NTD = _loss_gradient(dense, inputs_LNTD[-1], ids_NT, batch)
    out = torch.zeros(dense.layers, clusters, dense.config.intermediate_size)
    tokens_C = torch.bincount(cluster_N, minlength=clusters) * length
    for index in range(dense.layers - 1, -1, -1):
        block = dense.layer(index)
        ffn = ffn_of(block)
        for part in parts:
            hidden = inputs_LNTD[index, part].clone().requires_grad_()
            after, x = attend(block, hidden, positions)
            h_BTF = functional.silu(x @ ffn.gate_FD.T) * (x @ ffn.up_FD.T)
            output = after + h_BTF @ ffn.down_DF.T
            at_hidden, at_h = torch.autograd.grad(output, (hidden, h_BTF), gradient_NTD[part])
            score_BF = (h_BTF.detach() * at_h).abs().sum(dim=1)
            out[index].index_add_(0, cluster_N[part], score_BF)
            gradient_NTD[part] = at_hidden
        progress.update(detail="backward")
    out /= tokens_C[None, :, None]
    if not torch.isfinite(out).all():
        raise InputError(
            "construct: the gradients of the dense parent are not finite; its weights are damaged"
        )
    with files.atomic_path(path) as temporary:
        save_file({"importance": out}, temporary)
    (work / "layer-inputs.bin").unlink()
    return out


def _loss_gradient(dense: LazyModel, hidden_NTD: Tensor, ids_NT: Tensor, batch: int) -> Tensor:
    """dL/d(last hidden state) for the sum of the next-token losses."""
    norm, head_VD = dense.head()
    out = torch.zeros(hidden_NTD.shape)
    for block in range(len(ids_NT)):
        last = hidden_NTD[block].clone().requires_grad_()
        logits = norm(last)[:-1] @ head_VD.T
        loss = functional.cross_entropy(logits, ids_NT[block, 1:], reduction="sum")
        (out[block],) = torch.autograd.grad(loss, last)
    return out
