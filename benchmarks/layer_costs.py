"""What each layer costs when it alone is split, beside what `experts.dense_layers` predicts: nats a token, and the rank correlation.

    snakemake --profile profiles/local --cores 2 results/dense/manifest.json results/prepare/tokens/manifest.json
    python benchmarks/layer_costs.py

Each layer is fitted on the dense parent's inputs (`compensate: 0`), put into the otherwise dense parent, and measured on training text of the
calibrated domains that no fit saw much of: two blocks each, from a third and two thirds of the way through.
"""

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any

import construct as table
import torch
from torch import Tensor, nn

from moesaic.data import packed
from moesaic.experts import calibration, construct, sizes, split_layers, whole_layers
from moesaic.experts.trace import Trace
from moesaic.flow import manifest
from moesaic.model import load
from moesaic.model.lazy import LazyModel
from moesaic.schema import Experts


class Both(nn.Module):
    """GraniteMoeShared's routed and shared experts as one FFN."""

    def __init__(self, layer: Any):
        super().__init__()
        self.routed, self.shared = layer.block_sparse_moe, layer.shared_mlp

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Output of the layer's FFN."""
        found = self.routed(x_BTD)
        return (found[0] if isinstance(found, tuple) else found) + self.shared(x_BTD)


def mean_nats(model: Any, text: dict[str, Tensor]) -> float:
    """Mean over the domains of the loss of a token."""
    found = table.perplexities(model, text)
    return sum(math.log(value) for value in found.values()) / len(found)


def main() -> None:
    """Split, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--held-out", default="speeches")
    parser.add_argument("--tokens", type=int, default=10240, help="calibration tokens")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tokens = manifest.read(arguments.results / "prepare" / "tokens")
    dense = LazyModel(arguments.results / "dense" / "model")
    fitted = {"router": "least-squares", "reconstruct": "least-squares", "compensate": 0.0}
    shape = {"shared": 512, "experts": 16, "per_token": 4, "family": "granitemoeshared"}
    options = Experts(split="activation", **fitted, **shape, calibration={"tokens": arguments.tokens})
    settings = options.model_dump(mode="json")
    text = calibration.blocks(tokens, [arguments.held_out], settings["calibration"], 0)
    test = {}
    for name in packed.domains(tokens):
        stored = packed.open_blocks(tokens, name, "train")
        places = [len(stored) // 3, len(stored) // 3 * 2]
        if name != arguments.held_out:
            test[name] = torch.from_numpy(stored.tokens(places)).long()
    with tempfile.TemporaryDirectory(prefix="layer-costs-") as place:
        folder = Path(place)
        tokenizer = load.load_tokenizer(dense.folder)
        predicted = predictions(dense, settings | {"dense_layers": 1}, text, folder / "costs")
        (folder / "all" / "work").mkdir(parents=True)
        moe = construct.convert(
            dense, settings, text, 0, folder / "all", folder / "all" / "work", 0, tokenizer
        ).model
    model = load.load_model(dense.folder)
    parent = mean_nats(model, test)
    measured = []
    print("| layer | measured, nats | predicted |\n|---|---|---|")
    for index, layer in enumerate(moe.model.layers):
        own = model.model.layers[index].mlp
        model.model.layers[index].mlp = Both(layer)
        measured.append(mean_nats(model, test) - parent)
        model.model.layers[index].mlp = own
        print(f"| {index} | {measured[-1]:.4f} | {predicted[index]:.3f} |", flush=True)
    from scipy.stats import spearmanr

    print(f"\nrank correlation {spearmanr(measured, predicted).statistic:.2f}")


def predictions(dense: LazyModel, settings: dict[str, Any], text: Any, work: Path) -> list[float]:
    """The costs by which a conversion with this number of dense layers chooses them."""
    work.mkdir()
    trace = Trace(dense, text, settings["calibration"]["batch"], work)
    trace.run()
    widths = sizes.sizes(dense.config.intermediate_size, settings)
    split_layers.run(dense, trace, None, [settings] * dense.layers, widths, (), 0, work, 0)
    return whole_layers.choose(work, dense.layers, settings["dense_layers"])[1]


if __name__ == "__main__":
    main()
