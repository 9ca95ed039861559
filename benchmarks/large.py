"""Convert a model of LLaMA-2-7B's shape on a laptop: time and peak memory by method, beside LLaMA-MoE's setting.

    python benchmarks/large.py write large/parent            # 13.5 GB of random weights, once
    python benchmarks/large.py convert large/parent --layers 4 --methods random clustering activation
    python benchmarks/large.py convert large/parent --layers 32 --methods activation

Random weights carry no signal: only time and memory mean anything. Each method runs in a process of its own; an interrupted conversion
goes on with the next layer when it is started again.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

SHAPE = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 32, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
}  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {
    "random": {"split": "random", "router": "random"},
    "sequential": {"split": "sequential", "router": "random"},
    "copy": {"split": "copy", "router": "random", "experts": 4, "granularity": 2},
    "drop": {"split": "drop", "router": "random", "experts": 4, "granularity": 2},
    "clustering": {"split": "clustering", "router": "random"},
    "clustering, 10 x 500 (LLaMA-MoE)": {
        "split": "clustering", "router": "random", "clustering": {"initialisations": 10, "iterations": 500},
    },
    "coactivation": {"split": "coactivation", "router": "least-squares", "coactivation": {"seeds": 1}},
    "coactivation-sampled": {"split": "coactivation-sampled", "router": "least-squares", "coactivation": {"seeds": 1}},
    "gradient": {"split": "gradient", "router": "least-squares", "calibration": {"clusters": "domain"}},
    "sharing-inner": {
        "split": "sharing-inner", "router": "least-squares", "sharing": {"overlap": 0.25}, "calibration": {"clusters": "domain"},
    },
    "importance": {"split": "importance", "router": "least-squares", "shared": 2752, "calibration": {"clusters": "domain"}},
    "sharing-inter": {"split": "sharing-inter", "router": "least-squares", "shared": 2752, "calibration": {"clusters": "domain"}},
    "activation": {"split": "activation", "router": "least-squares", "reconstruct": "least-squares", "shared": 2752, "ridge": 1.0},
}  # fmt: skip


def write(folder: Path, layers: int) -> None:
    """A checkpoint of random bfloat16 weights, one layer in memory at a time."""
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    folder.mkdir(parents=True)
    config = LlamaConfig(**SHAPE | {"num_hidden_layers": layers}, dtype=torch.bfloat16)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    stream, hidden, wide = torch.Generator().manual_seed(0), SHAPE["hidden_size"], SHAPE["intermediate_size"]

    def draw(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=stream) * 0.02).to(torch.bfloat16)

    names: dict[str, str] = {}

    def shard(number: int, tensors: dict[str, torch.Tensor]) -> None:
        name = f"model-{number:05}-of-{layers + 1:05}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        names.update(dict.fromkeys(tensors, name))

    for index in range(layers):
        start = f"model.layers.{index}."
        tensors = {f"{start}self_attn.{name}_proj.weight": draw(hidden, hidden) for name in "qkvo"}
        tensors |= {f"{start}mlp.{name}_proj.weight": draw(wide, hidden) for name in ("gate", "up")}
        tensors[f"{start}mlp.down_proj.weight"] = draw(hidden, wide)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{start}{name}.weight"] = torch.ones(hidden, dtype=torch.bfloat16)
        shard(index + 1, tensors)
        print(f"layer {index + 1} of {layers} written", flush=True)
    vocabulary = SHAPE["vocab_size"]
    ends = {"model.embed_tokens.weight": draw(vocabulary, hidden), "lm_head.weight": draw(vocabulary, hidden)}
    shard(layers + 1, ends | {"model.norm.weight": torch.ones(hidden, dtype=torch.bfloat16)})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def convert_one(parent: Path, layers: int, name: str, tokens: int, out: Path, keep: bool) -> None:
    """Split and fit the first layers (all of them write a whole model), and report."""
    from moesaic.experts import calibration, construct
    from moesaic.model.lazy import LazyModel
    from moesaic.schema import Experts

    torch.set_num_threads(2)
    dense = LazyModel(parent)
    dense.config.num_hidden_layers = min(layers, dense.layers)
    blocks, length = tokens // 256, 256
    ids = torch.randint(0, SHAPE["vocab_size"], (blocks, length), generator=torch.Generator().manual_seed(1))
    fold = torch.tensor([*sorted(i % 2 for i in range(blocks - 1)), -1])
    text = calibration.Text(ids, fold, torch.arange(blocks) % 8, [str(i) for i in range(8)])
    settings = Experts(
        **{"experts": 8 if "shared" not in METHODS[name] else 6, "per_token": 2, **METHODS[name]}
    ).model_dump(mode="json")
    out.mkdir(parents=True, exist_ok=True)
    (out / "work").mkdir(exist_ok=True)
    began = time.monotonic()
    construct.convert(dense, settings, text, 0, out, out / "work", 1)
    peak = (
        max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        / 2**20
    )
    made = {
        "method": name,
        "layers": dense.layers,
        "tokens": tokens,
        "seconds": round(time.monotonic() - began),
    }
    print(json.dumps(made | {"peak_GiB": round(peak, 1)}), flush=True)
    if not keep:
        shutil.rmtree(out)


def main() -> None:
    """Write the parent, or convert it with each method in its own process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["write", "convert", "one"])
    parser.add_argument("parent", type=Path)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--keep", action="store_true", help="leave the converted models on the disk")
    arguments = parser.parse_args()
    out = arguments.parent.parent
    if arguments.what == "write":
        write(arguments.parent, arguments.layers)
    elif arguments.what == "one":
        name = arguments.methods[0]
        convert_one(
            arguments.parent,
            arguments.layers,
            name,
            arguments.tokens,
            out / f"moe-{list(METHODS).index(name)}-{arguments.layers}",
            arguments.keep,
        )
    else:
        for name in arguments.methods:
            call = [sys.executable, __file__, "one", str(arguments.parent), "--methods", name]
            subprocess.run(
                [*call, "--layers", str(arguments.layers), "--tokens", str(arguments.tokens)]
                + ["--keep"] * arguments.keep,
                check=True,
            )


if __name__ == "__main__":
    main()
