"""Instruction records of the three common formats as lists of messages: {role: system | user | assistant, content}."""

from collections.abc import Callable
from typing import Any

Message = dict[str, str]

SHAREGPT = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def alpaca(record: dict[str, Any]) -> list[Message] | None:
    """instruction, input (may be empty or missing), output; an optional system prompt."""
    instruction, answer = record.get("instruction"), record.get("output")
    extra, system = record.get("input") or "", record.get("system") or ""
    if not all(isinstance(part, str) for part in (instruction, answer, extra, system)):
        return None
    question = f"{instruction}\n\n{extra}" if extra.strip() else str(instruction)
    return _checked([("system", system)] * bool(system) + [("user", question), ("assistant", str(answer))])


def messages(record: dict[str, Any]) -> list[Message] | None:
    """messages: a list of {role, content}."""
    return _listed(
        record.get("messages"), "role", "content", {role: role for role in ("system", "user", "assistant")}
    )


def sharegpt(record: dict[str, Any]) -> list[Message] | None:
    """conversations: a list of {from, value} with human and gpt."""
    return _listed(record.get("conversations"), "from", "value", SHAREGPT)


# Each returns None for a malformed record. The fields are for error messages.
FORMATS: dict[str, Callable[[dict[str, Any]], list[Message] | None]] = {
    "alpaca": alpaca,
    "messages": messages,
    "sharegpt": sharegpt,
}
FIELDS = {"alpaca": "instruction, input, output", "messages": "messages", "sharegpt": "conversations"}


def _listed(turns: Any, role: str, content: str, roles: dict[str, str]) -> list[Message] | None:
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        return None
    found = [(roles.get(turn.get(role, ""), ""), turn.get(content)) for turn in turns]
    if not all(isinstance(text, str) for _, text in found):
        return None
    return _checked([(name, str(text)) for name, text in found])


def _checked(turns: list[tuple[str, str]]) -> list[Message] | None:
    """An optional system prompt, then user and assistant in turn, an answer last."""
    talk = turns[1:] if turns and turns[0][0] == "system" else turns
    expected = ["user", "assistant"] * (len(talk) // 2)
    if (
        not talk
        or [name for name, _ in talk] != expected
        or not all(text.strip() for name, text in talk if name == "user")
    ):
        return None
    return [{"role": name, "content": text.strip()} for name, text in turns]
