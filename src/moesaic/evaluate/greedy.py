"""Greedy continuations of prompts of different lengths in one batch.

Shapes: B prompts, T tokens of the longest.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from moesaic.generate.decode import end_tokens


def padded(prompts: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask [B, T], padded on the left, so that all go on at the same column."""
    longest = max(map(len, prompts))
    ids = [[pad] * (longest - len(item)) + list(item) for item in prompts]
    mask = [[0] * (longest - len(item)) + [1] * len(item) for item in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


@torch.inference_mode()
def answers(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]:
    """The tokens that follow on each prompt, up to and with the one that ends the answer (decode.end_tokens)."""
    from transformers import GenerationConfig

    ends = sorted(end_tokens(model, tokenizer))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
    ids_BT, mask_BT = padded(prompts, pad, model.device)
    settings = GenerationConfig(
        max_new_tokens=new_tokens, do_sample=False, pad_token_id=pad, eos_token_id=ends
    )
    out = model.generate(input_ids=ids_BT, attention_mask=mask_BT, generation_config=settings)
    rows: list[list[int]] = out[:, ids_BT.shape[1] :].tolist()
    # Behind its end a row is filled up until the last one has ended.
    return [row[: next((i + 1 for i, token in enumerate(row) if token in ends), len(row))] for row in rows]
