"""Greedy continuations of fixed prompts: what no score shows, a reader sees at once."""

import time
from typing import Any

from moesaic.evaluate import greedy
from moesaic.generate.sample import chat_prompt

PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a small village by the sea, there lived",
    'def fibonacci(n):\n    """Return the n-th Fibonacci number."""\n',
)
QUESTION = "Give three tips for staying healthy."
NEW_TOKENS = 48


def generate(
    model: Any, tokenizer: Any, new_tokens: int = NEW_TOKENS
) -> tuple[list[dict[str, str]], int, float]:
    """Continue the prompts (and answer a question, where there is a chat template) in one batch, with the KV cache.

    Returns:
        [{kind, prompt, text}], tokens made (padding after an end token not counted), seconds.
    """
    kinds = ["text"] * len(PROMPTS)
    shown = list(PROMPTS)
    ids = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in PROMPTS]
    if tokenizer.chat_template:
        kinds.append("chat")
        shown.append(QUESTION)
        ids.append(chat_prompt(tokenizer, QUESTION))
    began = time.perf_counter()
    rows = greedy.answers(model, tokenizer, ids, new_tokens)
    seconds = time.perf_counter() - began
    found = [
        {"kind": kind, "prompt": prompt, "text": tokenizer.decode(row, skip_special_tokens=True)}
        for kind, prompt, row in zip(kinds, shown, rows, strict=True)
    ]
    return found, sum(map(len, rows)), seconds
