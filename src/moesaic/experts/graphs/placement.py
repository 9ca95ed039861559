"""Which GPU holds which expert: few tokens should change GPU from one layer to the next.

Nodes are (layer, expert), an edge weighs the tokens that one expert hands to the other. Every GPU holds the same number of experts in
every layer; layer after layer is placed by linear assignment given its neighbours, back and forth, until the cut stops falling, from
several starts. On an Eulerian digraph (top-k without drops) directed cuts are half the undirected ones, so directions do not matter.

Shapes: L layers, E experts, G devices.
"""

import numpy as np
from scipy.optimize import linear_sum_assignment

SWEEPS = 20


def traffic(transitions_LEE: np.ndarray, device_LE: np.ndarray) -> float:
    """Share of the tokens' ways between neighbouring layers that change the device."""
    crossing = sum(
        float(counts[device_LE[index][:, None] != device_LE[index + 1][None, :]].sum())
        for index, counts in enumerate(transitions_LEE)
    )
    return crossing / max(float(transitions_LEE.sum()), 1e-12)


def round_robin(layers: int, experts: int, devices: int) -> np.ndarray:
    """Device of each expert [L, E], the usual placement: contiguous, the same in each layer."""
    return np.tile(np.arange(experts) * devices // experts, (layers, 1))


def minimum_cut(transitions_LEE: np.ndarray, devices: int, seed: int, starts: int = 8) -> np.ndarray:
    """Device of each expert [L, E]; E must divide by the devices.

    Args:
        transitions_LEE: tokens handed from expert i of layer l to expert j of layer l + 1, for the L - 1 pairs of layers.
    """
    pairs, experts, _ = transitions_LEE.shape
    layers = pairs + 1
    assert experts % devices == 0, f"{experts} experts do not divide by {devices} devices"
    slots = np.repeat(np.arange(devices), experts // devices)
    rng = np.random.default_rng(seed)
    best: tuple[float, np.ndarray] | None = None
    for start in range(starts):
        device = (
            round_robin(layers, experts, devices)
            if start == 0
            else np.stack([rng.permutation(slots) for _ in range(layers)])
        )
        value = traffic(transitions_LEE, device)
        for _ in range(SWEEPS):
            for index in [*range(layers), *range(layers - 1, -1, -1)]:
                gain_EG = np.zeros((experts, devices))
                for other in range(devices):
                    if index > 0:
                        gain_EG[:, other] += transitions_LEE[index - 1][device[index - 1] == other].sum(
                            axis=0
                        )
                    if index < layers - 1:
                        gain_EG[:, other] += transitions_LEE[index][:, device[index + 1] == other].sum(axis=1)
                rows, columns = linear_sum_assignment(-gain_EG[:, slots])
                device[index][rows] = slots[columns]
            found = traffic(transitions_LEE, device)
            if found >= value - 1e-12:
                break
            value = found
        if best is None or value < best[0]:
            best = (value, device.copy())
    assert best is not None
    return best[1]
