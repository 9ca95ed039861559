"""Instruction records as lists of messages: {role: system | user | assistant, content}. Three common formats, and any fields by template."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from moesaic.errors import InputError
from moesaic.schema import ChatSource

Message = dict[str, str]

SHAREGPT = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    # a call is the model's turn; what the function returns stands where the user's words do
    "function_call": "assistant",
    "observation": "user",
}
PLACE = re.compile(r"\{([^{}\n]+)\}")
"""A field's place in a template; names with spaces and hyphens too, as tables have them."""


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
    """conversations: a list of {from, value} with human and gpt, function_call and observation; an optional system prompt, and the tools there are."""
    turns = record.get("conversations")
    system, tools = record.get("system") or record.get("system_prompt") or "", record.get("tools") or ""
    if not isinstance(turns, list) or not isinstance(system, str) or not isinstance(tools, str):
        return None
    if turns and isinstance(turns[0], dict) and turns[0].get("from") == "system":
        system, turns = turns[0].get("value"), turns[1:]
        if not isinstance(system, str):
            return None
    before = [system] * bool(system.strip()) + [f"Tools:\n{tools}"] * (tools.strip() not in ("", "[]"))
    if before:
        turns = [{"from": "system", "value": "\n\n".join(before)}, *turns]
    return _listed(turns, "from", "value", SHAREGPT)


def template(record: dict[str, Any], prompt: str, answer: str) -> list[Message] | None:
    """One question and one answer, in which {field} stands for a field of the record: a text or a number, of a list in the question all, one a line, in the answer the first."""
    question, given = fill(prompt, record, lists=True), fill(answer, record)
    if question is None or given is None:
        return None
    return _checked([("user", question), ("assistant", given)])


def fill(text: str, record: dict[str, Any], lists: bool = False) -> str | None:
    """The text with each {field} replaced by the record's; None when a field is missing or no text. Args: lists: whole ones, one entry a line; else the first entry."""
    values = {name: _value(record.get(name), lists) for name in PLACE.findall(text)}
    return None if None in values.values() else PLACE.sub(lambda place: str(values[place[1]]), text)


def reader(source: ChatSource) -> Callable[[dict[str, Any]], list[Message] | None]:
    """What makes messages of a source's records; it returns None for a malformed one."""
    if source.format == "template":
        prompt, answer = source.prompt or "", source.answer or ""
        return lambda record: template(record, prompt, answer)
    return FORMATS[source.format]


def chosen(where: Mapping[str, str], record: Mapping[str, Any], key: str) -> bool:
    """True when a record's fields have the values of `where`, as text.

    Raises:
        InputError: there is no such field; names the key and the fields.
    """
    for name in where:
        if name not in record:
            raise InputError(f"{key}.where: no field '{name}'; the record's are {', '.join(record)}")
    return all(str(record[name]) == wanted for name, wanted in where.items())


def fields(source: ChatSource) -> str:
    """The fields that a source's records must have, for error messages."""
    if source.format == "template":
        return ", ".join(dict.fromkeys(PLACE.findall(f"{source.prompt}{source.answer}")))
    return FIELDS[source.format]


FORMATS: dict[str, Callable[[dict[str, Any]], list[Message] | None]] = {
    "alpaca": alpaca,
    "messages": messages,
    "sharegpt": sharegpt,
}
FIELDS = {"alpaca": "instruction, input, output", "messages": "messages", "sharegpt": "conversations"}


def _value(value: Any, lists: bool) -> str | None:
    """A field as text; None for what is neither text, number nor a list of them."""
    if isinstance(value, list) and value:
        if lists:
            entries = [_value(entry, False) for entry in value]
            return None if None in entries else "\n".join(map(str, entries))
        value = value[0]
    return str(value) if isinstance(value, str | int | float) else None


def _listed(turns: Any, role: str, content: str, roles: dict[str, str]) -> list[Message] | None:
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        return None
    found = [(turn.get(role, ""), turn.get(content)) for turn in turns]
    if not all(isinstance(name, str) and isinstance(text, str) for name, text in found):
        return None
    return _checked([(roles.get(name, ""), text) for name, text in found])


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
    return [{"role": name, "content": _whole(text.strip())} for name, text in turns]


def _whole(text: str) -> str:
    """The text with half characters (lone surrogates, which JSON allows) replaced: no tokenizer takes them."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
