"""What only an MoE can be asked: do the routers send shifted text elsewhere, and what is lost when an expert fails or others run per token.

The dense parent is measured on the same texts (bits per byte), so that a harder text is not taken for a fault of the routers.

Shapes: N texts of a group, T tokens, L MoE layers, E experts, K experts per token, R resamples.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moesaic.evaluate import bootstrap
from moesaic.evaluate.likelihood import target_nats
from moesaic.evaluate.routing import load_cv
from moesaic.flow.progress import Progress
from moesaic.model import families

PLAIN = "plain"
SHUFFLES = 200


@dataclass(frozen=True)
class Group:
    """Sums over the tokens of each text."""

    nats_N: np.ndarray
    bytes_N: np.ndarray
    slots_NLE: np.ndarray | None
    """Token slots that each expert got; None for a dense model."""
    keys: list[str]
    """Digest of each text, so that two models are compared on the same ones."""


# ---------------------------------------------------------------- measuring


@torch.inference_mode()
def measure(model: Any, tokenizer: Any, texts: Sequence[str], batch: int) -> Group:
    """Next-token nats, bytes and expert loads of each text, read on its own after the start token (the end token where there is none)."""
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    ids = [[start, *tokenizer(text, add_special_tokens=False)["input_ids"]] for text in texts]
    nats, slots = np.zeros(len(texts)), []
    with families.Routing(model) as recorded:
        for begin in range(0, len(ids), batch):
            group = ids[begin : begin + batch]
            longest = max(map(len, group))
            # Padded on the right: attention is causal, so that no real token sees the padding.
            ids_BT = torch.zeros(len(group), longest, dtype=torch.long)
            real_BT = torch.zeros(len(group), longest, dtype=torch.bool)
            for row, item in enumerate(group):
                ids_BT[row, : len(item)] = torch.tensor(item)
                real_BT[row, : len(item)] = True
            ids_BT, real_BT = ids_BT.to(model.device), real_BT.to(model.device)
            hidden_BTD = model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
            wanted_BT = real_BT[:, 1:]
            found, _ = target_nats(model, hidden_BTD[:, :-1][wanted_BT], ids_BT[:, 1:][wanted_BT])
            each = torch.zeros(wanted_BT.shape, dtype=torch.float64, device=found.device)
            each[wanted_BT] = found.double()
            nats[begin : begin + len(group)] = each.sum(1).cpu().numpy()
            if recorded.layers:
                slots.append(_slots(recorded, real_BT))
    lengths = np.array([len(text.encode()) for text in texts], dtype=np.float64)
    keys = [hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts]
    return Group(nats, lengths, np.concatenate(slots) if slots else None, keys)


def _slots(routing: families.Routing, real_BT: Tensor) -> np.ndarray:
    """Slots of each text of a batch [B, L, E]; those of padding, and of tokens that skip a layer, are not counted."""
    blocks, positions = real_BT.shape
    out = []
    for index, (part, skip) in enumerate(zip(routing.layers, routing.skips, strict=True)):
        chosen_TK = routing.indices[index]
        at_T = torch.arange(blocks * positions, device=chosen_TK.device) if skip is None else skip.index_K
        counted_TK = real_BT.flatten()[at_T][:, None].expand_as(chosen_TK)
        experts = part.router.weight.shape[0]
        flat = (at_T // positions)[:, None] * experts + chosen_TK
        counts = torch.bincount(flat[counted_TK], minlength=blocks * experts)
        out.append(counts.view(blocks, experts))
    return np.asarray(torch.stack(out, dim=1).cpu().double().numpy())


# ---------------------------------------------------------------- stress


@contextmanager
def without(model: Any, expert: int) -> Iterator[None]:
    """The same expert of every MoE layer is gone: tokens that chose it get their next choice, weighted as if it had been chosen at once.

    With all experts running per token there is no next choice: its weight is 0.
    """

    def hook(router: Any, inputs: Any, output: Any) -> Any:
        logits, weights_TK, indices_TK = output
        hit_T = (indices_TK == expert).any(1)
        if not hit_T.any():
            return output
        if router.top_k == router.weight.shape[0]:
            return logits, weights_TK * (indices_TK != expert), indices_TK
        router.top_k += 1
        try:
            # forward, not the module: the hooks are not to run again.
            _, more_TK, wider_TK = router.forward(*inputs)
        finally:
            router.top_k -= 1
        keep_TK = wider_TK != expert
        # Tokens that did not choose it keep what they have; for the others exactly one of the K + 1 is dropped.
        kept_TK = more_TK[hit_T][keep_TK[hit_T]].view(-1, router.top_k)
        total = more_TK[hit_T].sum(1, keepdim=True) / kept_TK.sum(1, keepdim=True).clamp_min(1e-20)
        weights, indices = weights_TK.clone(), indices_TK.clone()
        weights[hit_T] = (kept_TK * total).to(weights.dtype)
        indices[hit_T] = wider_TK[hit_T][keep_TK[hit_T]].view(-1, router.top_k)
        return logits, weights, indices

    handles = [part.router.register_forward_hook(hook) for part in families.parts(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def running(model: Any, per_token: int) -> Iterator[None]:
    """Another number of experts per token, for a while."""
    before = model.config.num_experts_per_tok
    families.set_per_token(model, per_token)
    try:
        yield
    finally:
        families.set_per_token(model, before)


def counts(model: Any) -> list[int]:
    """Numbers of experts per token to try beside the model's own: 1, one less, one more, twice as many."""
    own = int(model.config.num_experts_per_tok)
    routed = int(next(families.parts(model)).router.weight.shape[0])
    return sorted({k for k in (1, own - 1, own + 1, 2 * own) if 1 <= k <= routed and k != own})


# ---------------------------------------------------------------- figures


def divergence(first_LE: np.ndarray, second_LE: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence of two loads in bits, [..., L]: 0 for equal ones, 1 for loads on disjoint experts (Lin 1991, eq. 4.1).

    JS(p, q) = H((p + q) / 2) - (H(p) + H(q)) / 2 with H(p) = -sum p log2 p. A layer without any slot on one side gives 0.
    """
    sums = [np.maximum(part.sum(-1, keepdims=True), 1e-300) for part in (first_LE, second_LE)]
    p, q = first_LE / sums[0], second_LE / sums[1]
    found = _entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2
    some = (first_LE.sum(-1) > 0) & (second_LE.sum(-1) > 0)
    return np.where(some, np.clip(found, 0.0, 1.0), 0.0)


def _entropy(p: np.ndarray) -> np.ndarray:
    return np.asarray(-(p * np.log2(np.maximum(p, 1e-300))).sum(-1))


def drift(
    first_NLE: np.ndarray, second_NLE: np.ndarray, paired: bool, resamples: int, rng: np.random.Generator
) -> tuple[bootstrap.Estimate, float]:
    """Mean over layers of the divergence between the loads of two groups of texts, and what it is where nothing drifts.

    Few texts give a divergence above 0 by noise alone: the second number is its mean after shuffling which group a text is in (within
    pairs where the groups are the same texts in two forms). The interval resamples texts (bootstrap.around).
    """
    value = float(divergence(first_NLE.sum(0), second_NLE.sum(0)).mean())
    n, layers, experts = first_NLE.shape
    both = np.concatenate([first_NLE, second_NLE]).reshape(n + len(second_NLE), -1)
    total = both.sum(0)
    shuffled = np.zeros((SHUFFLES, both.shape[1]))
    for i in range(SHUFFLES):
        if paired:
            flip = rng.random(n) < 0.5
            mask = np.concatenate([~flip, flip])
        else:
            mask = np.zeros(len(both), dtype=bool)
            mask[rng.permutation(len(both))[:n]] = True
        shuffled[i] = both[mask].sum(0)
    shape = (SHUFFLES, layers, experts)
    floor = float(divergence(shuffled.reshape(shape), (total - shuffled).reshape(shape)).mean())
    sides = [first_NLE.reshape(n, -1).T, second_NLE.reshape(len(second_NLE), -1).T]
    if paired:
        sums = np.split(bootstrap.resampled_sums(np.concatenate(sides), resamples, rng), 2, axis=1)
    else:
        sums = [bootstrap.resampled_sums(side, resamples, rng) for side in sides]
    drawn = [part.reshape(resamples, layers, experts) for part in sums]
    interval = bootstrap.around(value, divergence(drawn[0], drawn[1]).mean(-1))
    return bootstrap.Estimate(value, *interval, n), floor


def unevenness(slots_NLE: np.ndarray, resamples: int, rng: np.random.Generator) -> bootstrap.Estimate:
    """Load CV of a group, mean over layers; few texts push it up too."""
    n, layers, experts = slots_NLE.shape
    value = float(load_cv(slots_NLE.sum(0)).mean())
    sums = bootstrap.resampled_sums(slots_NLE.reshape(n, -1).T, resamples, rng)
    interval = bootstrap.around(value, load_cv(sums.reshape(resamples, layers, experts)).mean(-1))
    return bootstrap.Estimate(value, *interval, n)


def worst(
    rises_EN: np.ndarray, bytes_N: np.ndarray, resamples: int, rng: np.random.Generator
) -> bootstrap.Estimate:
    """Rise without the expert that is missed most: chosen on the even texts and read off the odd ones, and the other way round; the mean of both.

    Read off the texts that it was chosen on, the largest of E noisy rises would be too large. Of a single text it is, and has no interval.
    """
    if len(bytes_N) < 2:
        return bootstrap.ratio(rises_EN[rises_EN.sum(1).argmax()], bytes_N, resamples, rng)
    halves = (slice(0, None, 2), slice(1, None, 2))
    strata = []
    for chosen_on, read_off in (halves, halves[::-1]):
        expert = rises_EN[:, chosen_on].sum(1).argmax()
        strata.append((rises_EN[expert, read_off], bytes_N[read_off]))
    return bootstrap.macro(strata, resamples, rng)


def bits(group: Group) -> bootstrap.Stratum:
    """Bits and bytes of each text."""
    return group.nats_N / math.log(2), group.bytes_N


# ---------------------------------------------------------------- the whole


@dataclass(frozen=True)
class Measured:
    """Rows for scores.json as (task, metric, estimate, chance), texts for paired comparisons, and details."""

    rows: list[tuple[str, str, bootstrap.Estimate, float | None]]
    groups: dict[str, Group]
    details: dict[str, Any]


def run(
    model: Any, tokenizer: Any, texts: Mapping[str, Sequence[str]], batch: int, resamples: int, seed: int
) -> Measured:
    """Measure every group of texts; for an MoE also drift, unevenness, each expert gone, and other numbers of experts per token.

    Args:
        texts: group -> texts. `plain` and the styles hold the same texts in the same order; domain/movies and the others do not.
    """
    moe = families.is_moe(model)
    tries = counts(model) if moe else []
    experts = int(next(families.parts(model)).router.weight.shape[0]) if moe else 0
    stress = texts.get(PLAIN, []) if moe else []
    progress = Progress("texts", len(texts) + (len(tries) + experts if stress else 0), "passes")
    groups = {}
    for name, found in texts.items():
        groups[name] = measure(model, tokenizer, found, batch)
        progress.update(1, name)
    rows: list[tuple[str, str, bootstrap.Estimate, float | None]] = []
    details: dict[str, Any] = {"drift": {}, "experts": [], "per_token": {}}
    for name, group in groups.items():
        rng = bootstrap.generator(seed, f"shift/{name}/bits_per_byte")
        rows.append((f"shift/{name}", "bits_per_byte", bootstrap.macro([bits(group)], resamples, rng), None))
        if group.slots_NLE is None:
            continue
        rng = bootstrap.generator(seed, f"shift/{name}/load_cv")
        rows.append((f"shift/{name}", "load_cv", unevenness(group.slots_NLE, resamples, rng), None))
        other = "domain/movies" if name.startswith("domain/") else PLAIN
        if name == other or other not in groups:
            continue
        base = groups[other].slots_NLE
        assert base is not None
        rng = bootstrap.generator(seed, f"shift/{name}/drift")
        estimate, floor = drift(base, group.slots_NLE, other == PLAIN, resamples, rng)
        rows.append((f"shift/{name}", "drift", estimate, floor))
        layers = divergence(base.sum(0), group.slots_NLE.sum(0))
        details["drift"][name] = [round(float(value), 6) for value in layers]
    if stress:
        own = groups[PLAIN]
        changed: list[Group] = []
        for expert in range(experts):
            with without(model, expert):
                changed.append(measure(model, tokenizer, stress, batch))
            progress.update(1, f"without expert {expert}")
        rises = [(group.nats_N - own.nats_N) / math.log(2) for group in changed]
        total = own.bytes_N.sum()
        details["experts"] = [round(float(rise.sum() / total), 6) for rise in rises]
        rng = bootstrap.generator(seed, "stress/expert/rise_mean")
        estimate = bootstrap.ratio(np.mean(rises, axis=0), own.bytes_N, resamples, rng)
        rows.append(("stress/expert", "rise_mean", estimate, None))
        rng = bootstrap.generator(seed, "stress/expert/rise_worst")
        rows.append(
            ("stress/expert", "rise_worst", worst(np.array(rises), own.bytes_N, resamples, rng), None)
        )
        for count in tries:
            with running(model, count):
                group = measure(model, tokenizer, stress, batch)
            progress.update(1, f"{count} experts per token")
            rise = (group.nats_N - own.nats_N) / math.log(2)
            rng = bootstrap.generator(seed, f"stress/per_token/{count}")
            estimate = bootstrap.ratio(rise, own.bytes_N, resamples, rng)
            rows.append((f"stress/per_token_{count}", "rise", estimate, None))
            details["per_token"][str(count)] = round(estimate.value, 6)
    return Measured(rows, groups, details)
