"""Batched decoding with a plain transformers model: padded on the left, KV cache, end tokens, temperature and top-p.

A sequence's randomness is its own: every answer has a seed, which gives one uniform number per position, and a token is read off the
cumulative distribution at that number. So an answer depends neither on what else is in the batch nor on what was drawn before, up to the
rounding of the logits.

Shapes: P prompts, S sequences (prompts times draws), T prompt tokens, V vocabulary.
"""

import contextlib
import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moesaic.data import chat_template
from moesaic.errors import InputError
from moesaic.model import grouped


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen."""

    new_tokens: int
    """Most tokens of an answer."""
    temperature: float = 1.0
    """0: the most likely token."""
    top_p: float = 1.0
    """Only the most likely tokens that together have this probability (nucleus sampling; Holtzman et al., arXiv 1904.09751, section 3.1)."""

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Decoding":
        """From a configuration section that holds these keys among others."""
        return cls(settings["new_tokens"], settings["temperature"], settings["top_p"])


@dataclass(frozen=True)
class Answer:
    """One continuation."""

    ids: list[int]
    """Its tokens, with the end token where there is one."""
    finished: bool
    """False: cut off at the most tokens allowed."""


def device() -> torch.device:
    """Where models of these steps run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def free() -> None:
    """Give back the memory of models that nobody holds any more: modules and their hooks refer to each other, and wait for the collector."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def precision(where: torch.device) -> Any:
    """The products' precision in training (train/engine.py), so that log-probabilities are those of the training pass."""
    if where.type != "cuda" or not torch.cuda.is_bf16_supported():
        return contextlib.nullcontext()
    grouped.register()
    return torch.autocast("cuda", torch.bfloat16)


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Tokens that end an answer: the tokenizer's, those that the model's generation_config.json lists, and the one that ends a turn of the chat template.

    Raises:
        InputError: neither has one.
    """
    found: set[int] = set()
    listed = getattr(model.generation_config, "eos_token_id", None)
    for value in (tokenizer.eos_token_id, listed, chat_template.end_of_turn(tokenizer)):
        if value is not None:
            found |= set(value) if isinstance(value, list | tuple) else {int(value)}
    if not found:
        raise InputError(
            "model.tokenizer: it has no end-of-sequence token, so no answer would ever end; set eos_token"
        )
    return found


@torch.inference_mode()
def decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[Sequence[int]],
    how: Decoding,
    ends: set[int],
) -> list[list[Answer]]:
    """Answers to each prompt, one per seed; every prompt has the same number of seeds, and is read once.

    Args:
        seeds: [P][draws]. ends: tokens that end an answer; they are kept in it.

    Raises:
        InputError: prompt and answer together are longer than the model's context.
    """
    draws = len(seeds[0])
    assert all(len(item) == draws for item in seeds), "every prompt needs the same number of seeds"
    longest = max(len(item) for item in prompts)
    check_context(model, longest, how.new_tokens)
    where = model.device
    ids_PT = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=where)
    mask_PT = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=where)
    positions_PT = (mask_PT.cumsum(1) - 1).clamp_min(0)
    with precision(where):
        out = model(
            input_ids=ids_PT,
            attention_mask=mask_PT,
            position_ids=positions_PT,
            use_cache=True,
            logits_to_keep=1,
        )
    cache = out.past_key_values
    cache.batch_repeat_interleave(draws)
    mask_ST = mask_PT.repeat_interleave(draws, 0)
    next_S = positions_PT[:, -1].repeat_interleave(draws) + 1
    logits_SV = out.logits[:, -1].repeat_interleave(draws, 0)
    uniforms = np.stack([uniform(seed, how.new_tokens) for item in seeds for seed in item])
    uniform_ST = torch.from_numpy(uniforms).to(where)
    ends_E = torch.tensor(sorted(ends), device=where)
    alive_S = torch.arange(len(uniforms), device=where)  # which sequence each row of the batch is
    made: list[list[int]] = [[] for _ in range(len(uniforms))]
    finished = [False] * len(uniforms)
    for step in range(how.new_tokens):
        tokens_S = choose(logits_SV, uniform_ST[alive_S, step], how)
        ended_S = torch.isin(tokens_S, ends_E)
        for row, token, ended in zip(alive_S.tolist(), tokens_S.tolist(), ended_S.tolist(), strict=True):
            made[row].append(token)
            finished[row] = ended
        if step + 1 == how.new_tokens or bool(ended_S.all()):
            break
        if bool(ended_S.any()):  # the rows of answers that ended leave the batch
            kept = (~ended_S).nonzero()[:, 0]
            cache.batch_select_indices(kept)
            alive_S, tokens_S, mask_ST, next_S = alive_S[kept], tokens_S[kept], mask_ST[kept], next_S[kept]
        mask_ST = torch.cat([mask_ST, mask_ST.new_ones(len(mask_ST), 1)], dim=1)
        with precision(where):
            out = model(
                input_ids=tokens_S[:, None],
                attention_mask=mask_ST,
                position_ids=next_S[:, None],
                past_key_values=cache,
                use_cache=True,
            )
        cache, logits_SV, next_S = out.past_key_values, out.logits[:, -1], next_S + 1
    answers = [Answer(ids, end) for ids, end in zip(made, finished, strict=True)]
    return [answers[i * draws : (i + 1) * draws] for i in range(len(prompts))]


def choose(logits_SV: Tensor, uniform_S: Tensor, how: Decoding) -> Tensor:
    """The next token of each sequence [S].

    Args:
        uniform_S: numbers in [0, 1), float64; not read at temperature 0.
    """
    if how.temperature == 0:
        return logits_SV.argmax(dim=1)
    probability_SV, order_SV = (
        (logits_SV.float() / how.temperature).softmax(dim=1).sort(dim=1, descending=True, stable=True)
    )
    cumulative_SV = probability_SV.double().cumsum(dim=1)
    # The nucleus: every token before which less than top_p is gathered; the first one always belongs to it.
    inside_SV = (cumulative_SV - probability_SV.double()) < how.top_p
    inside_SV[:, 0] = True
    count_S = inside_SV.sum(dim=1)
    mass_S = cumulative_SV.gather(1, count_S[:, None] - 1)[:, 0]
    place_S = (cumulative_SV <= (uniform_S * mass_S)[:, None]).sum(dim=1)
    return order_SV.gather(1, torch.minimum(place_S, count_S - 1)[:, None])[:, 0]


def uniform(seed: int, count: int) -> np.ndarray:
    """The numbers of one answer, [count] float64: a function of its seed alone, alike on every machine and device."""
    return np.random.Generator(np.random.Philox(seed)).random(count)


def check_context(model: Any, prompt: int, new: int, key: str = "") -> None:
    """Refuse prompts that with their answer are longer than the model's context. Args: key: section of the configuration that says how long they may be."""
    most = getattr(model.config, "max_position_embeddings", None)
    if most is not None and prompt + new > most:
        raise InputError(
            f"{key and key + '.'}new_tokens: a prompt of {prompt} tokens and {new} new ones exceed the model's context of {most}; lower new_tokens{'' if key.endswith('rubric') else ' or max_prompt'}"
        )
