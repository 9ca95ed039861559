"""From caption to picture and from picture to caption, as a reader sees it: what no loss shows.

Shapes: B prompts, V vocabulary, C codes, H and W rows and columns of a picture.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moesaic.generate.decode import end_tokens
from moesaic.model.adapters.layout import ImageTokens

CAPTION_TOKENS = 24


def padded(prompts: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask [B, T], padded on the left, so that all go on at the same column."""
    longest = max(map(len, prompts))
    ids = [[pad] * (longest - len(item)) + list(item) for item in prompts]
    mask = [[0] * (longest - len(item)) + [1] * len(item) for item in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


@torch.inference_mode()
def draw(
    model: Any, tokens: ImageTokens, prompts: Sequence[Sequence[int]], grid: tuple[int, int], pad: int, chance: torch.Generator | None,
) -> np.ndarray:  # fmt: skip
    """Codes [B, H, W] that follow on prompts that end with the begin token of a grid; only codes are looked at.

    Args:
        chance: draws each code from its probability; None takes the likeliest.
    """
    ids_BT, mask_BT = padded(prompts, pad, model.device)
    places_BT = (mask_BT.cumsum(1) - 1).clamp_min(0)
    cache, found = None, []
    for _ in range(grid[0] * grid[1]):
        out = model(
            input_ids=ids_BT, attention_mask=mask_BT, position_ids=places_BT, past_key_values=cache, use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        cache = out.past_key_values
        logits_BC = out.logits[:, -1, tokens.first : tokens.first + tokens.codes].float().cpu()
        if chance is None:
            codes_B = logits_BC.argmax(dim=1)
        else:
            codes_B = torch.multinomial(logits_BC.softmax(dim=1), 1, generator=chance)[:, 0]
        found.append(codes_B)
        ids_BT = (tokens.first + codes_B)[:, None].to(model.device)
        mask_BT = torch.cat([mask_BT, torch.ones_like(ids_BT)], dim=1)
        places_BT = places_BT[:, -1:] + 1
    return torch.stack(found, dim=1).view(len(prompts), *grid).numpy()


@torch.inference_mode()
def describe(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]]) -> list[str]:
    """Greedy answers to prompts that end where the answer begins."""
    from transformers import GenerationConfig

    ends = sorted(end_tokens(model, tokenizer))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
    ids_BT, mask_BT = padded(prompts, pad, model.device)
    settings = GenerationConfig(
        max_new_tokens=CAPTION_TOKENS, do_sample=False, pad_token_id=pad, eos_token_id=ends
    )
    out = model.generate(input_ids=ids_BT, attention_mask=mask_BT, generation_config=settings)
    texts = tokenizer.batch_decode(out[:, ids_BT.shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]
