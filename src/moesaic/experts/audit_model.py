"""Audit an MoE checkpoint, ours or a stranger's: what its experts and routers do on text, see audit.py.

Shapes: B blocks, T tokens, D model width, E experts, K experts per token, M neurons per expert, S shared neurons.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from moesaic.data import packed
from moesaic.errors import InputError
from moesaic.experts import audit
from moesaic.flow import manifest
from moesaic.flow.progress import Progress
from moesaic.model import families, load
from moesaic.model.adapters import beside
from moesaic.model.depth import skip


def blocks(tokens: Path, per_domain: int) -> Tensor:
    """The first validation blocks of every domain [B, T]."""
    found = manifest.read(tokens)
    parts = []
    for name in packed.domains(found):
        stored = packed.open_blocks(found, name, "validation")
        parts.append(torch.from_numpy(stored.tokens(list(range(min(per_domain, len(stored)))))).long())
    return torch.cat(parts)


@torch.no_grad()
def run(folder: Path, ids_BT: Tensor, top: float = 0.1, seed: int = 0) -> dict[str, Any]:
    """Figures of every MoE layer and of the routing, JSON-able.

    Raises:
        InputError: not an MoE of a known family, or token ids outside of its vocabulary.
    """
    beside.refuse_half(folder, "the audit")
    model = load.load_model(folder, "audit")
    parts = list(families.parts(model))
    if not parts:
        raise InputError(
            f"{folder}: {model.config.model_type} is not an MoE that can be audited; known: {', '.join(families.FAMILIES)}"
        )
    if skip.layers(model):
        raise InputError(
            f"{folder}: its layers skip tokens, and what a skipped router would choose is not known; make it a standard model first (moesaic fold)"
        )
    if int(ids_BT.max()) >= model.config.vocab_size:
        raise InputError(
            f"{folder}: its vocabulary ends at {model.config.vocab_size - 1}, the text has token {int(ids_BT.max())}; tokenise with the model's own tokenizer"
        )
    experts, neurons = parts[0].experts.gate_up_proj.shape[0], parts[0].experts.gate_up_proj.shape[1] // 2
    audits = [audit.LayerAudit(experts, neurons, seed * 1009 + index) for index in range(len(parts))]
    inputs: dict[int, Tensor] = {}
    handles = [
        part.router.register_forward_pre_hook(
            lambda _m, given, index=index: inputs.update({index: given[0].flatten(0, -2)})
        )
        for index, part in enumerate(parts)
    ]
    progress = Progress("audit", len(ids_BT), "blocks")
    with families.Routing(model) as routing:
        for row in ids_BT:
            model(input_ids=row[None])
            for index, part in enumerate(parts):
                routed_TEM, length_TE, shared_TS = _contributions(part, inputs[index])
                audits[index].add(routed_TEM.flatten(1), shared_TS, length_TE, routing.indices[index], top)
            progress.update()
    for handle in handles:
        handle.remove()
    layers = [
        {"layer": part.layer} | item.summary(seed * 1009 + index)
        for index, (part, item) in enumerate(zip(parts, audits, strict=True))
    ]
    audit.warn(layers)
    routes = [torch.cat(item.index_TK) for item in audits]
    return {"layers": layers, "routing": audit.routing(routes, experts, seed)}


def _contributions(part: families.Parts, x_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Contributions of the routed [T, E, M] and shared [T, S] neurons, and the length of every expert's output [T, E]."""
    x_TD = x_TD.float()
    gate_EMD, up_EMD = part.experts.gate_up_proj.float().chunk(2, dim=1)
    down_EDM = part.experts.down_proj.float()
    h_ETM = functional.silu(x_TD @ gate_EMD.transpose(1, 2)) * (x_TD @ up_EMD.transpose(1, 2))
    length_TE = (h_ETM @ down_EDM.transpose(1, 2)).norm(dim=2).T
    routed_TEM = (h_ETM.abs() * down_EDM.norm(dim=1)[:, None]).transpose(0, 1)
    if part.shared is None or part.family.get_shared is None:
        return routed_TEM, length_TE, x_TD.new_zeros(len(x_TD), 0)
    gate_SD, up_SD, down_DS = (matrix.float() for matrix in part.family.get_shared(part.shared))
    h_TS = functional.silu(x_TD @ gate_SD.T) * (x_TD @ up_SD.T)
    gate = getattr(part.shared, "shared_expert_gate", None)
    if gate is not None:  # qwen2_moe; get_shared is of a gate of zero
        h_TS = h_TS * (2.0 * (x_TD @ gate.weight.float().T).sigmoid())
    return routed_TEM, length_TE, h_TS.abs() * down_DS.norm(dim=0)
