"""Greedy continuations of fixed prompts: what no score shows, a reader sees at once."""

import time
from typing import Any

import torch

from moesaic.generate.decode import end_tokens
from moesaic.generate.sample import chat_prompt

PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a small village by the sea, there lived",
    'def fibonacci(n):\n    """Return the n-th Fibonacci number."""\n',
)
QUESTION = "Give three tips for staying healthy."
NEW_TOKENS = 48


@torch.inference_mode()
def generate(
    model: Any, tokenizer: Any, new_tokens: int = NEW_TOKENS
) -> tuple[list[dict[str, str]], int, float]:
    """Continue the prompts (and answer a question, where there is a chat template) in one batch, with the KV cache.

    Returns:
        [{kind, prompt, text}], tokens made (padding after an end token not counted), seconds.
    """
    from transformers import GenerationConfig

    kinds = ["text"] * len(PROMPTS)
    shown = list(PROMPTS)
    ids = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in PROMPTS]
    if tokenizer.chat_template:
        kinds.append("chat")
        shown.append(QUESTION)
        ids.append(chat_prompt(tokenizer, QUESTION))
    ends = sorted(end_tokens(model, tokenizer))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
    longest = max(len(item) for item in ids)
    # Padded on the left, so that all sequences go on at the same column.
    tokens = torch.tensor([[pad] * (longest - len(item)) + item for item in ids], device=model.device)
    mask = torch.tensor([[0] * (longest - len(item)) + [1] * len(item) for item in ids], device=model.device)
    settings = GenerationConfig(
        max_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=pad,
        eos_token_id=ends,
        bos_token_id=tokenizer.bos_token_id,
    )
    began = time.perf_counter()
    out = model.generate(input_ids=tokens, attention_mask=mask, generation_config=settings)[:, longest:]
    seconds = time.perf_counter() - began
    made = 0
    found = []
    for kind, prompt, row in zip(kinds, shown, out.tolist(), strict=True):
        made += row.index(ends) + 1 if ends in row else len(row)
        found.append(
            {"kind": kind, "prompt": prompt, "text": tokenizer.decode(row, skip_special_tokens=True)}
        )
    return found, made, seconds
