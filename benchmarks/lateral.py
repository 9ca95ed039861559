"""Adapters for interleaved text and images at equal parameter budgets: one linear LoRA, two by modality, a mixture, linear + convolution.

    python benchmarks/lateral.py

A tiny decoder is trained on captions alone and frozen. Then each arm learns, from the same sequences in the same order, to go from caption to
picture and from picture to caption: drawn scenes of 32 x 32 pixels (shape, colour, place, size and background vary), an 8 x 8 grid of codes from
a k-means codebook. Only the adapter and the image tokens' embeddings learn. Held-out scenes are measured. Rows already in the output file are
not made again.
"""

import argparse
import copy
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional

from moesaic.data.images import codebook
from moesaic.flow import metrics
from moesaic.model.adapters import attach
from moesaic.model.adapters.layout import ImageTokens
from moesaic.model.adapters.options import Options

SHAPES = ("circle", "square", "triangle")
COLOURS = {
    "red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 220), "yellow": (240, 210, 40), "black": (20, 20, 20), "purple": (150, 50, 170),
}  # fmt: skip
PLACES = ("top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right")
SIZES = ("small", "large")
WORDS = sorted(
    {"a", "at", "the", "on", "light", "dark", *SHAPES, *COLOURS, *SIZES, *" ".join(PLACES).split()}
)
CODES, GRID, PATCH = 128, (8, 8), 4
PAD, BOS, EOS = 0, 1, 2
FIRST = 3 + len(WORDS)
TOKENS = ImageTokens(FIRST, CODES, FIRST + CODES, {FIRST + CODES + 1: GRID})
VOCABULARY = FIRST + CODES + 2
ARMS = {
    "plain": {"method": "lateral", "kernel": "plain"},
    "two-linear": {"method": "two-linear"},
    "shared": {"method": "shared-linear"},
    "experts": {"method": "moe-lora", "experts": 2},
    "depthwise": {"method": "lateral", "kernel": "depthwise"},
    "analytic": {"method": "lateral", "kernel": "analytic"},
    "mosaic": {"method": "lateral", "kernel": "mosaic"},
}
"""The first sets the budget."""


def scene(random: np.random.Generator) -> tuple[np.ndarray, list[int]]:
    """A picture [32, 32, 3] in 0..1 and its caption as word ids."""
    shape, colour = random.choice(SHAPES), random.choice(list(COLOURS))
    place, size, dark = random.integers(9), random.integers(2), random.integers(2)
    ground = 90 + 40 * random.random() if dark else 200 + 50 * random.random()
    ramp = np.linspace(-25, 25, 32)[:, None] * np.ones(32) * random.choice([-1, 1])
    image = Image.fromarray(np.clip(ground + ramp, 0, 255)[..., None].repeat(3, 2).astype(np.uint8))
    middle = np.array([place % 3, place // 3]) * 10 + 6 + random.integers(-1, 2, 2)
    half = 4 if size == 0 else 6
    (x0, y0), (x1, y1) = middle - half, middle + half
    draw = ImageDraw.Draw(image)
    if shape == "circle":
        draw.ellipse((x0, y0, x1, y1), COLOURS[colour])
    elif shape == "square":
        draw.rectangle((x0, y0, x1, y1), COLOURS[colour])
    else:
        draw.polygon([(middle[0], y0), (x1, y1), (x0, y1)], COLOURS[colour])
    text = f"a {SIZES[size]} {colour} {shape} at the {PLACES[place]} on {'dark' if dark else 'light'}"
    return np.asarray(image) / 255, [3 + WORDS.index(word) for word in text.split()]


def sequences(count: int, book: codebook.Codebook, seed: int) -> Tensor:
    """Half caption -> picture, half picture -> caption [N, T], padded."""
    random = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        pixels, caption = scene(random)
        picture = [next(iter(TOKENS.grids)), *(FIRST + book.encode(pixels).flatten()).tolist(), TOKENS.end]
        rows.append([BOS, *(caption + picture if i % 2 == 0 else picture + caption), EOS])
    longest = max(map(len, rows))
    return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])


def captions(count: int, seed: int) -> Tensor:
    """Captions alone [N, T]."""
    random = np.random.default_rng(seed)
    rows = [[BOS, *scene(random)[1], EOS] for _ in range(count)]
    longest = max(map(len, rows))
    return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])


def base(seed: int, steps: int) -> Any:
    """A decoder trained on captions."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
        max_position_embeddings=128, tie_word_embeddings=False, pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    text = captions(2000, seed)
    fit(model, text, list(model.parameters()), steps, 3e-3, 32, seed)
    return model


def losses(model: Any, ids_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cross entropy [B, T - 1], whether the best guess is right, and the targets; padding has 0."""
    logits = model(input_ids=ids_BT, use_cache=False).logits[:, :-1]
    target = ids_BT[:, 1:]
    nll = functional.cross_entropy(logits.mT, target, reduction="none") * (target != PAD)
    return nll, logits.argmax(-1) == target, target


def fit(
    model: Any, data: Tensor, parameters: list[Any], steps: int, rate: float, batch: int, seed: int
) -> None:
    """Adam, cosine; the same batches for the same seed."""
    random = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(parameters, rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    model.train()
    for _ in range(steps):
        ids = data[torch.randint(0, len(data), (batch,), generator=random)]
        ids = ids[:, : int((ids != PAD).sum(1).max())]
        nll, _, target = losses(model, ids)
        loss = nll.sum() / (target != PAD).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


@torch.no_grad()
def measure(model: Any, data: Tensor) -> dict[str, float]:
    """Nats per image token and per text token, share of image tokens guessed right."""
    sums = torch.zeros(5, dtype=torch.float64)
    for ids in data.split(50):
        nll, right, target = losses(model, ids)
        image = TOKENS.is_code(target)
        text = (target != PAD) & (target < FIRST)
        sums += torch.stack([nll[image].sum(), image.sum(), (right & image).sum(), nll[text].sum(), text.sum()]).double()  # fmt: skip
    return {
        "image_nll": float(sums[0] / sums[1]),
        "image_accuracy": float(sums[2] / sums[1]),
        "text_nll": float(sums[3] / sums[4]),
    }


def arm(name: str, parent: Any, data: Tensor, test: Tensor, arguments: Any, seed: int) -> dict[str, Any]:
    """Attach, train, measure."""
    model = copy.deepcopy(parent)
    budget = attach.planned(model, Options(rank=arguments.rank, size=arguments.size, **ARMS["plain"]))
    options = attach.equal_budget(
        model,
        Options(rank=arguments.rank, alpha=2.0 * arguments.rank, size=arguments.size, **ARMS[name]),
        budget,
    )
    torch.manual_seed(seed)
    attach.attach(model, options, TOKENS)
    attach.train_rows(model, TOKENS)
    parameters = [p for p in model.parameters() if p.requires_grad]
    began = time.process_time()
    fit(model, data, parameters, arguments.steps, arguments.rate, 16, seed)
    found = {key: round(value, 5) for key, value in measure(model, test).items()}
    return {"arm": name, "seed": seed, "rank": options.rank, "parameters": attach.count(model), "budget": budget, "size": arguments.size} | {
        "steps": arguments.steps, "seconds": round(time.process_time() - began, 1),
    } | found  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: means; beside two-linear in the same seeds, with the standard error of the difference."""
    lines = [
        "| arm | rank | parameters | seeds | image, nats per token | beside two-linear | guessed right | text, nats per token |",
        "|---|---|---|---|---|---|---|---|",
    ]
    beside = {r["seed"]: r["image_nll"] for r in rows if r["arm"] == "two-linear"}
    for name in ARMS:
        own = [r for r in rows if r["arm"] == name]
        if len(own) < 2:
            continue
        mean = {
            key: statistics.fmean(r[key] for r in own) for key in ("image_nll", "image_accuracy", "text_nll")
        }
        gaps = [r["image_nll"] - beside[r["seed"]] for r in own if r["seed"] in beside]
        gap = (
            f"{statistics.fmean(gaps):+.4f} ± {statistics.stdev(gaps) / len(gaps) ** 0.5:.4f}"
            if len(gaps) > 1
            else ""
        )
        lines.append(
            f"| {name} | {own[0]['rank']} | {own[0]['parameters']} | {len(own)} | {mean['image_nll']:.4f} | {gap} | {mean['image_accuracy']:.1%} | "
            f"{mean['text_nll']:.4f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Make the missing rows, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/lateral.jsonl"))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=250, help="of 16 sequences")
    parser.add_argument("--rank", type=int, default=16, help="of the arm `plain`, which sets the budget")
    parser.add_argument("--size", type=int, default=3, help="taps on a side")
    parser.add_argument("--rate", type=float, default=5e-3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.touch()
    random = np.random.default_rng(0)
    book = codebook.train([scene(random)[0] for _ in range(400)], CODES, PATCH, 0)
    for seed in range(arguments.seeds):
        done = {(r["arm"], r["seed"]) for r in metrics.read(arguments.out)}
        wanted = [name for name in arguments.arms if (name, seed) not in done]
        if not wanted:
            continue
        parent = base(seed, 150)
        data, test = sequences(3000, book, 100 + seed), sequences(400, book, 10_000)
        for name in wanted:
            made = arm(name, parent, data, test, arguments, seed)
            with arguments.out.open("a") as file:
                file.write(json.dumps(made) + "\n")
            print(made, flush=True)
    print(table(list(metrics.read(arguments.out))))


if __name__ == "__main__":
    main()
