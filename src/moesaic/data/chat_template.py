"""Conversations through a tokenizer's own chat template, the same on every day.

Some templates (Llama 3.2, SmolLM3, gpt-oss) write today's date by `strftime_now`. Rows prepared on two days would differ, and so would answers that are
made again after an interruption past midnight: here that function gives one fixed day.
"""

from typing import Any

import jinja2

DAY = {
    "%d": "26", "%-d": "26", "%e": "26", "%m": "07", "%-m": "7", "%b": "Jul", "%B": "July", "%Y": "2024", "%y": "24", "%a": "Fri", "%A": "Friday",
    "%j": "208", "%F": "2024-07-26", "%H": "12", "%I": "12", "%M": "00", "%S": "00", "%T": "12:00:00", "%p": "PM",
}  # fmt: skip
"""26 July 2024 at noon (the day that Llama 3's template itself falls back to), by directive of strftime."""
FIXED = (
    "{%- macro strftime_now(format) -%}{{ format"
    + "".join(f" | replace('{directive}', '{text}')" for directive, text in DAY.items())
    + " }}{%- endmacro -%}"
)


def fixed(tokenizer: Any) -> str:
    """The tokenizer's template, with one day for today."""
    template: str = tokenizer.get_chat_template()
    return FIXED + template if "strftime_now" in template else template


def render(messages: list[dict[str, str]], tokenizer: Any, prompt: bool) -> list[int]:
    """Token ids of a conversation. Args: prompt: with the beginning of an answer to come.

    Raises:
        jinja2.TemplateError: the template refuses these messages.
    """
    text = tokenizer.apply_chat_template(
        messages, chat_template=fixed(tokenizer), tokenize=False, add_generation_prompt=prompt
    )
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


def end_of_turn(tokenizer: Any) -> int | None:
    """The special token that ends an answer in the template; None without a template or such a token.

    Of a base model that was given a template it is another one than the tokenizer's end of sequence.
    """
    if not tokenizer.chat_template:
        return None
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        before, through = render(talk[:1], tokenizer, True), render(talk, tokenizer, False)
    except jinja2.TemplateError:
        return None
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    answer = through[len(before) :] if through[: len(before)] == before else []
    return next((token for token in answer if token in special), None)
