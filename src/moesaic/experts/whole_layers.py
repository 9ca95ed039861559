"""Which layers keep the parent's FFN, when `dense_layers` is a number: those where a split is predicted to cost most.

Cost of a layer: sum over the neurons that would not always run of the mean of (h dL/dh)^2, the diagonal of the Fisher information of a switch on
each neuron (Optimal Brain Damage, LeCun et al., 1990; Molchanov et al., arXiv 1906.10771, eq. 8), from the backward pass that the split
`activation` needs anyway. The shared neurons are those with the largest of it, whatever the split.

Shapes: F dense FFN width.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from moesaic.flow import files

NEEDS = frozenset({"sensitivity"})


def counted(settings: dict[str, Any]) -> bool:
    """True when `dense_layers` is a number, so that layers have to be chosen."""
    return isinstance(settings["dense_layers"], int)


def listed(settings: dict[str, Any], layers: int) -> list[int]:
    """The dense layers in order. Where a number is asked for, the last ones: an architecture that can have these can have any."""
    wanted = settings["dense_layers"]
    return list(range(layers))[-wanted:] if counted(settings) else sorted(set(wanted))


def record(work: Path, layer: int, sensitivity_F: Tensor, shared: int) -> None:
    """Keep a layer's cost in the work folder."""
    tail = sensitivity_F.sort(descending=True).values[shared:]
    files.write_json(_path(work, layer), {"cost": float(tail.double().sum())})


def choose(work: Path, layers: int, count: int) -> tuple[tuple[int, ...], list[float]]:
    """The layers with the largest recorded costs, in order, and the costs of all."""
    costs = [float(files.read_json(_path(work, layer))["cost"]) for layer in range(layers)]
    order = sorted(range(layers), key=lambda layer: (-costs[layer], layer))
    return tuple(sorted(order[:count])), costs


def _path(work: Path, layer: int) -> Path:
    return work / f"cost-{layer:03}.json"
