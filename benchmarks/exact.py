"""Every split method x 0, 1, 2 shared experts x two architectures on a real model: is the conversion exact?

    snakemake --profile profiles/local --cores 2 results/dense/manifest.json results/prepare/tokens/manifest.json
    python benchmarks/exact.py

For each: with all experts on and unit weights, the largest difference to the dense parent's logits; the saved model read by plain
transformers against the layers that it was made of; logits after a bfloat16 save and load, which must be equal bit for bit; with one shared
expert also a second conversion, whose files must be the same. Where float32 differs by more than 1e-4, the same comparison is made in float64,
which tells rounding (of 30 layers, with logits up to 34) from something lost. Rows that are in the output file already are not made again.
"""

import argparse
import dataclasses
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from moesaic.experts import calibration, construct, scale, splits
from moesaic.flow import files, manifest, metrics
from moesaic.model import families, load
from moesaic.model.lazy import LazyModel
from moesaic.schema import Experts

ROUTED = {0: 8, 1: 5, 2: 4}
"""Experts beside so many shared ones, so that all divide a width of 1536."""


def settings(name: str, shared: int, other: bool) -> dict[str, Any]:
    """A configuration; `other` asks for a second architecture than the automatic choice."""
    found: dict[str, Any] = {
        "split": name, "router": "random", "reconstruct": "none", "per_token": 2, "experts": ROUTED[shared],
        "calibration": {"tokens": 18 * 512, "clusters": "domain"}, "coactivation": {"seeds": 1},
    }  # fmt: skip
    if name in ("copy", "drop"):
        found |= {"experts": 4, "granularity": 2, "shared": 512 * shared}
    elif shared:
        found["shared_experts"] = shared
    if other:
        # glm4_moe's shared expert is a multiple of a routed one, which these widths are not
        odd = name in ("copy", "drop", "sharing-inner")
        found["family"] = ("qwen2_moe" if odd else "glm4_moe") if shared else "granitemoeshared"
    return Experts(**found).model_dump(mode="json")


def halves_equal(model: Path, folder: Path, ids: torch.Tensor) -> bool:
    """Save as bfloat16, load, compare bit for bit."""
    half = load.load_model(model, dtype=torch.bfloat16)
    half.save_pretrained(folder / "half")
    again = load.load_model(folder / "half")
    assert again.dtype == torch.bfloat16
    with torch.no_grad():
        return bool(torch.equal(half(input_ids=ids).logits, again(input_ids=ids).logits))


@torch.no_grad()
def all_on_float64(parent: Path, moe: Any, factor: float, ids_NT: torch.Tensor) -> float:
    """Largest difference of logits in float64, of the finished model with all experts on and unit weights. Not for splits that overlap or draw anew."""
    dense, moe = load.load_model(parent).double(), moe.double()
    moe.set_experts_implementation("eager")  # the grouped product has no float64
    for part in families.parts(moe):
        experts = len(part.router.weight)
        part.router.top_k = experts
        part.router.weight.zero_()  # weights of 1 / E
        part.experts.down_proj *= experts / factor
    return float((dense(input_ids=ids_NT).logits - moe(input_ids=ids_NT).logits).abs().max())


def row(parent: Path, tokens: Any, name: str, shared: int, other: bool, threads: int) -> dict[str, Any]:
    """Convert and check."""
    wanted = settings(name, shared, other)
    dense = LazyModel(parent)
    text = calibration.blocks(tokens, [], wanted["calibration"], 0)
    text = dataclasses.replace(text, ids_NT=text.ids_NT[:, :128])  # exactness needs no good statistics
    digests = []
    with tempfile.TemporaryDirectory(prefix="exact-") as place:
        folder = Path(place)
        for turn in range(2 if shared == 1 and not other else 1):
            out, work = folder / f"out-{turn}", folder / "work"
            work.mkdir(parents=True)
            out.mkdir()
            made = construct.convert(
                dense, wanted, text, 0, out, work, threads, load.load_tokenizer(dense.folder)
            )
            digests.append(sorted(files.sha256(path) for path in (out / "model").glob("*.safetensors")))
            shutil.rmtree(work)
        double = None
        if made.proof["max_logit_error"] > 1e-4:
            factor = scale.FACTORS[wanted["scale"]](wanted["experts"], wanted["per_token"])
            double = all_on_float64(parent, made.model, factor, text.ids_NT[:1])
        equal = halves_equal(folder / "out-0" / "model", folder, text.ids_NT[:1, :64])
    return {
        "method": name, "shared": shared, "family": made.model.config.model_type, "other": other,
        "all_on": made.proof["max_logit_error"], "all_on_float64": double, "largest_logit": made.proof["max_logit"], "reload": made.proof["reload_error"],
        "bfloat16": equal, "same_file": digests[0] == digests[-1] if len(digests) > 1 else None,
    }  # fmt: skip


def main() -> None:
    """Make the missing rows, print all of them; fails when one is not exact."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/exact.jsonl"))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tokens = manifest.read(arguments.results / "prepare" / "tokens")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.touch()
    rows = list(metrics.read(arguments.out))
    done = {(item["method"], item["shared"], item["other"]) for item in rows}
    for name in splits.METHODS:
        for shared in ROUTED:
            for other in (False, True):
                if (name, shared, other) in done:
                    continue
                rows.append(
                    row(arguments.results / "dense" / "model", tokens, name, shared, other, arguments.threads)
                )
                with arguments.out.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
                print(json.dumps(rows[-1]), flush=True)
    print(
        "| method | shared | architecture | all experts on | reload | bfloat16 equal | same file |\n|---|---|---|---|---|---|---|"
    )
    for item in rows:
        same = {None: "", True: "yes", False: "NO"}[item["same_file"]]
        finer = item.get("all_on_float64")
        double = "" if finer is None else f" ({finer:.1e} in float64)"
        print(
            f"| {item['method']} | {item['shared']} | {item['family']} | {item['all_on']:.1e}{double} | {item['reload']:.1e} "
            f"| {'yes' if item['bfloat16'] else 'NO'} | {same} |"
        )
    wrong = [
        item
        for item in rows
        if (item["all_on"] > 1e-4 and item["all_on_float64"] > 1e-6)
        or item["reload"] > 1e-4
        or not item["bfloat16"]
        or item["same_file"] is False
    ]
    if wrong:
        raise SystemExit(f"{len(wrong)} of {len(rows)} are not exact: {wrong}")


if __name__ == "__main__":
    main()
