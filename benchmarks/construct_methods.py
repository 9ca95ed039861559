"""The constructions that benchmarks/construct.py compares, and their sizes at each share of the FFN."""

from typing import Any

FITTED = {"router": "least-squares", "reconstruct": "least-squares", "compensate": 0.5}
BY_RATE = {"split": "activation", "shape": "shared", "activation": {"shared_by": "rate"}}
METHODS: dict[str, dict[str, Any]] = {
    "random, random router, N/k (LLaMA-MoE)": {"split": "random", "router": "random", "scale": "n-over-k"},
    "clustering, random router, N/k (LLaMA-MoE)": {
        "split": "clustering",
        "router": "random",
        "scale": "n-over-k",
    },
    "copy (sparse upcycling, virtual groups)": {"split": "copy", "router": "random", "shape": "copies"},
    "drop (drop-upcycling)": {"split": "drop", "router": "random", "shape": "copies"},
    "static pruning, refitted (control)": {
        "split": "activation",
        "router": "random",
        "scale": "off",
        "reconstruct": "least-squares",
        "compensate": 0.5,
        "activation": {"shared_by": "rate"},
        "shape": "control",
    },
    "random": {"split": "random", **FITTED},
    "sequential": {"split": "sequential", **FITTED},
    "clustering": {"split": "clustering", **FITTED},
    "gradient": {"split": "gradient", **FITTED},
    "importance, 2 of 6 beside shared": {"split": "importance", "shape": "shared", **FITTED},
    "sharing-inner": {"split": "sharing-inner", "shape": "overlap", **FITTED},
    "coactivation": {"split": "coactivation", **FITTED},
    "coactivation-sampled": {"split": "coactivation-sampled", **FITTED},
    "sharing-inter, 2 of 6 beside shared": {"split": "sharing-inter", "shape": "shared", **FITTED},
    "activation by rate, 2 of 6 beside shared, no refit": {**BY_RATE, "router": "least-squares"},
    "activation by rate, 2 of 6, representative router (CMoE)": {
        **BY_RATE,
        **FITTED,
        "router": "representative",
    },
    "activation by rate, 2 of 6 beside shared": {**BY_RATE, **FITTED},
    "activation, 2 of 6 beside shared": {"split": "activation", "shape": "shared", **FITTED},
    "activation, two thirds of what runs shared": {
        "split": "activation",
        "shape": "fine",
        "router": "least-squares",
        "reconstruct": "least-squares",
    },
    "activation, first layer left dense (default)": {
        "split": "activation",
        "shape": "one-dense",
        "router": "least-squares",
        "reconstruct": "least-squares",
    },
    "activation, first sixth of the layers left dense": {
        "split": "activation",
        "shape": "start-dense",
        "router": "least-squares",
        "reconstruct": "least-squares",
    },
    "activation, first and last sixth of the layers left dense": {
        "split": "activation",
        "shape": "ends-dense",
        "router": "least-squares",
        "reconstruct": "least-squares",
    },
}


def shape(kind: str, active: float, width: int) -> dict[str, Any]:
    """Sizes with the wanted share of the FFN running, for a share in quarters.

    equal: 8 experts. shared: half of the active neurons always on, 2 of the rest. fine: two thirds always on, experts of a 24th of the FFN.
    copies: of the whole FFN, 4 pieces each, twice. overlap: experts a third or more wider than an eighth, for sharing-inner. control: always the same.
    one-dense: the first layer runs whole, the others a little less than the share, so that the mean over SmolLM2's 30 layers is below it.
    start-dense: the first five of its layers run whole, the others 69.8 % (75 % in all only), experts of 16 neurons.
    ends-dense: the first and last five of its layers run whole, the others 62.5 % (75 % in all only).
    """
    on, quarters = round(active * width), round(4 * active)
    if kind == "control":
        return {"shared": on, "experts": 4, "per_token": 1}
    if kind == "equal":
        return {"experts": 8, "per_token": 2 * quarters}
    if kind == "copies":
        return {"experts": 8, "granularity": 4, "per_token": quarters}
    if kind == "overlap":
        chosen = {1: 1, 2: 3, 3: 4}[quarters]
        return {"experts": 8, "per_token": chosen, "sharing": {"overlap": on / chosen * 8 / width - 1}}
    if kind == "fine":
        always, expert = on * 2 // 3, width // 24
        return {"shared": always, "experts": (width - always) // expert, "per_token": (on - always) // expert}
    if kind == "one-dense":
        always, chosen = {1: (256, 2), 2: (512, 7), 3: (768, 11)}[quarters]
        more = {"dense_layers": [0], "family": "glm4_moe"}
        return {"shared": always, "experts": (width - always) // 32, "per_token": chosen} | more
    if kind == "start-dense":
        more = {"dense_layers": [*range(5)], "family": "glm4_moe"}
        return {"shared": 768, "experts": 48, "per_token": 19} | more
    if kind == "ends-dense":
        whole = [*range(5), *range(25, 30)]
        return {"shared": 768, "experts": 24, "per_token": 6, "dense_layers": whole}
    always, expert = on // 2, on // 4
    return {"shared": always, "experts": (width - always) // expert, "per_token": 2}
