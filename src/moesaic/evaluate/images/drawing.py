"""From caption to picture and from picture to caption, as a reader sees it: what no loss shows.

Shapes: B prompts, T tokens, C codes, H and W rows and columns of a picture.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from moesaic.evaluate import greedy
from moesaic.model.adapters.layout import ImageTokens

CAPTION_TOKENS = 24


@torch.inference_mode()
def draw(
    model: Any, tokens: ImageTokens, prompts: Sequence[Sequence[int]], grid: tuple[int, int], pad: int, chance: torch.Generator | None,
) -> np.ndarray:  # fmt: skip
    """Codes [B, H, W] that follow on prompts that end with the begin token of a grid; only codes are looked at.

    Args:
        chance: draws each code from its probability; None takes the likeliest.
    """
    ids_BT, mask_BT = greedy.padded(prompts, pad, model.device)
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


def describe(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]]) -> list[str]:
    """Greedy answers to prompts that end where the answer begins."""
    rows = greedy.answers(model, tokenizer, prompts, CAPTION_TOKENS)
    return [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]
