"""What the micro-batches of an optimizer step report, added up over them and over the ranks."""

from collections.abc import Mapping

import torch
from torch import Tensor

from moesaic.train import balance
from moesaic.train.engine import Engine


class Sums:
    """Sums of one step."""

    def __init__(self, names: list[str]):
        self.names = names
        self.domain = torch.zeros(len(names), 3, dtype=torch.float64)
        self.scalars = torch.zeros(5, dtype=torch.float64)
        self.load: Tensor | None = None

    def add(self, loss: Tensor, statistics: Mapping[str, Tensor], domains: list[str], share: float) -> None:
        for i, name in enumerate(domains):
            row = (
                torch.stack([statistics["nll_B"][i], statistics["distill_B"][i], statistics["targets_B"][i]])
                .double()
                .cpu()
            )
            self.domain[self.names.index(name)] += row
        self.scalars[0] += float(loss)
        if "load_LE" in statistics:
            for i, key in enumerate(("balance", "z", "entropy"), 1):
                self.scalars[i] += share * float(statistics[key])
            self.scalars[4] += float(statistics["dropped"])
            load = statistics["load_LE"].double().cpu()
            self.load = load if self.load is None else self.load + load

    def reduced(self, engine: Engine, targets: int) -> tuple[dict[str, float], Tensor | None]:
        """The values to log, and the load of the step [L, E]; None without experts."""
        domain, scalars = engine.sum(self.domain).cpu(), engine.sum(self.scalars).cpu()
        out = {"train/loss": float(scalars[0]), "train/loss/lm": float(domain[:, 0].sum()) / targets}
        if domain[:, 1].any():
            out["train/loss/distill"] = float(domain[:, 1].sum()) / targets
        for name, (nll, _, count) in zip(self.names, domain.tolist(), strict=True):
            if count:
                out[f"train/loss/domain/{name}"] = nll / count
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
            out |= {f"routing/load_cv/layer_{i}": float(value) for i, value in enumerate(cv_L)}
        return out, load_LE
