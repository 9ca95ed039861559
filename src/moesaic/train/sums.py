"""What the micro-batches of an optimizer step report, added up over them and over the ranks."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from moesaic.train import balance
from moesaic.train.engine import Engine

MODALITIES = ("image", "text")
"""Order of the sums in the statistic `modality`, see objectives.by_modality."""
ROW = "row/"
"""Statistics of that name hold one value per row (or pair); their means are logged."""


class Sums:
    """Sums of one step."""

    def __init__(self, names: list[str], layers: Sequence[int] = ()):
        """Args: layers: decoder layers that have experts, by number, for the names of what is logged by layer."""
        self.names, self.layers = names, layers
        self.domain = torch.zeros(len(names), 3, dtype=torch.float64)
        self.scalars = torch.zeros(5, dtype=torch.float64)
        self.modality = torch.zeros(2 * len(MODALITIES), dtype=torch.float64)
        self.load: Tensor | None = None
        self.depth: Tensor | None = None
        self.depth_scalars = torch.zeros(2, dtype=torch.float64)
        self.rows: dict[str, Tensor] = {}

    def add(self, loss: Tensor, statistics: Mapping[str, Tensor], domains: list[str], share: float) -> None:
        # One transfer for all rows: each waits for the device.
        rows_B3 = torch.stack(
            [statistics[key].double() for key in ("nll_B", "distill_B", "targets_B")], dim=1
        )
        for name, row in zip(domains, rows_B3.cpu(), strict=True):
            self.domain[self.names.index(name)] += row
        for key, values_B in statistics.items():
            if key.startswith(ROW):
                one = torch.stack([values_B.sum(), values_B.new_tensor(len(values_B))]).double().cpu()
                self.rows[key] = self.rows.get(key, 0.0) + one
        self.scalars[0] += float(loss)
        if "modality" in statistics:
            self.modality += statistics["modality"].double().cpu()
        if "load_LE" in statistics:
            for i, key in enumerate(("balance", "z", "entropy"), 1):
                self.scalars[i] += share * float(statistics[key])
            self.scalars[4] += float(statistics["dropped"])
            load = statistics["load_LE"].double().cpu()
            self.load = load if self.load is None else self.load + load
        if "depth_L4" in statistics:
            counts = statistics["depth_L4"].double().cpu()
            self.depth = counts if self.depth is None else self.depth + counts
            for i, key in enumerate(("depth_loss", "depth_agreement")):
                self.depth_scalars[i] += share * float(statistics[key])

    def reduced(self, engine: Engine) -> tuple[dict[str, float], Tensor | None]:
        """The values to log, and the load of the step [L, E]; None without experts."""
        domain, scalars = engine.sum(self.domain).cpu(), engine.sum(self.scalars).cpu()
        targets = float(domain[:, 2].sum())
        out = {"train/loss": float(scalars[0]), "train/loss/lm": float(domain[:, 0].sum()) / targets}
        if domain[:, 1].any():
            out["train/loss/distill"] = float(domain[:, 1].sum()) / targets
        for name, (nll, _, count) in zip(self.names, domain.tolist(), strict=True):
            if count:
                out[f"train/loss/domain/{name}"] = nll / count
        out |= modality_means(engine, self.modality, "train")
        out |= {
            f"train/{key.removeprefix(ROW)}": value for key, value in row_means(engine, self.rows).items()
        }
        load_LE = None
        if self.load is not None:
            load_LE = engine.sum(self.load).cpu()
            cv_L = balance.load_cv(load_LE)
            out |= {
                "train/loss/balance": float(scalars[1]),
                "train/loss/z": float(scalars[2]),
                "routing/entropy": float(scalars[3]),
            }
            out["routing/load_cv"] = float(cv_L.mean())
            out["routing/dropped"] = float(scalars[4]) / float(load_LE.sum())
            out |= {
                f"routing/load_cv/layer_{layer}": float(value)
                for layer, value in zip(self.layers, cv_L, strict=True)
            }
        return out, load_LE

    def reduced_depth(self, engine: Engine) -> tuple[dict[str, float], Tensor] | None:
        """The depth routers' loss and agreement to log, and the counts of the step over all ranks [L, 4]; None without depth routers."""
        if self.depth is None:
            return None
        loss, agreement = engine.sum(self.depth_scalars).cpu().tolist()
        return {"train/loss/depth": loss, "depth/agreement": agreement}, engine.sum(self.depth).cpu()


def modality_means(engine: Engine, sums: Tensor, where: str) -> dict[str, float]:
    """Mean loss of image codes and of text over all ranks, `{where}/modality/{image, text}`, nats per target; nothing where there were none."""
    found = engine.sum(sums).cpu().tolist()
    means = zip(MODALITIES, found[::2], found[1::2], strict=True)
    return {f"{where}/modality/{name}": nll / count for name, nll, count in means if count}


def row_means(engine: Engine, rows: Mapping[str, Tensor]) -> dict[str, float]:
    """Means over all ranks of what `Sums.rows` adds up: key -> [sum, count]."""
    if not rows:
        return {}
    keys = sorted(rows)
    found = engine.sum(torch.stack([rows[key] for key in keys])).cpu()
    return {key: float(total / count) for key, (total, count) in zip(keys, found, strict=True)}
