"""Greedy continuations of a few fixed prompts: numbers say how good, samples say how it feels."""

import time
from typing import Any

import torch

PROMPTS = ("The capital of France is", "Once upon a time, there was a", "def fibonacci(n):\n")
QUESTION = "What should I pack for a weekend in the mountains?"
NEW_TOKENS = 40


@torch.no_grad()
def samples(model: Any, tokenizer: Any) -> tuple[list[dict[str, str]], float]:
    """Prompt and continuation of each, and new tokens per second."""
    prompts = [(prompt, prompt) for prompt in PROMPTS]
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": QUESTION}]
        prompts.append(
            (QUESTION, tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        )
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (tokenizer.eos_token_id or 0)
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for _, text in prompts]
    longest = max(map(len, rows))
    ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    began = time.perf_counter()
    out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        pad_token_id=pad,
        temperature=None,
        top_p=None,
        top_k=None,
    )
    seconds = time.perf_counter() - began
    texts = tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True)
    made = out[:, longest:].numel()
    return [
        {"prompt": prompt, "text": text} for (prompt, _), text in zip(prompts, texts, strict=True)
    ], made / seconds
