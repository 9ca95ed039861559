"""Chat templates: one that writes the date gives the same tokens on every day; those that are shipped; where an answer ends."""

import copy
import datetime
import types
from pathlib import Path

import pytest

from moesaic.data import chat, chat_template
from moesaic.errors import InputError
from moesaic.flow import local_data
from moesaic.generate import decode, sample
from moesaic.project import shipped

NOON = datetime.datetime(2024, 7, 26, 12)
TALK = [{"role": "user", "content": "Which day?"}, {"role": "assistant", "content": "A Friday."}]
TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
# As Llama 3.2 and SmolLM3 write it.
LLAMA = (
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- else %}"
    "{%- set date_string = '?' %}{%- endif %}{%- endif %}Today Date: {{ date_string }}\n"
)
SMOL = '{%- set today = strftime_now("%d %B %Y") -%}{{ "Today Date: " ~ today ~ "\\n" }}'


def with_template(tokenizer, template):
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = template
    return changed


@pytest.mark.parametrize("directive", list(chat_template.DAY))
def test_every_directive_is_of_one_day(directive):
    assert chat_template.DAY[directive] == NOON.strftime(directive)


@pytest.mark.parametrize(("head", "month"), [(LLAMA, "Jul"), (SMOL, "July")])
def test_the_date_of_a_template_is_fixed(tokenizer, head, month):
    dated = with_template(tokenizer, head + TURNS)
    fixed = with_template(tokenizer, f"Today Date: 26 {month} 2024\n" + TURNS)
    assert dated.apply_chat_template(TALK, tokenize=False) != fixed.apply_chat_template(TALK, tokenize=False)
    assert chat.encode(TALK, dated) == chat.encode(TALK, fixed)
    assert sample.chat_prompt(dated, "Which day?") == sample.chat_prompt(fixed, "Which day?")
    assert sum(chat.encode(TALK, dated)[1])


def test_other_templates_are_left_alone(tokenizer):
    text = tokenizer.apply_chat_template(TALK, tokenize=False)
    assert (
        chat_template.render(TALK, tokenizer, False) == tokenizer(text, add_special_tokens=False)["input_ids"]
    )


def test_a_template_that_refuses_a_lone_question_is_named(tokenizer):
    strict = with_template(tokenizer, "{{ raise_exception('system prompt first') }}")
    with pytest.raises(InputError, match=r"model\.chat_template: it refuses a lone question \(system prompt"):
        sample.chat_prompt(strict, "Which day?")


def test_an_answer_ends_where_the_template_ends_the_turn(tokenizer):
    """A base model with a template of its own: its end of sequence is not the end of a turn."""
    base = with_template(tokenizer, TURNS)
    base.eos_token = "<|endoftext|>"
    turn = base.convert_tokens_to_ids("<|im_end|>")
    assert chat_template.end_of_turn(base) == turn != base.eos_token_id
    assert decode.end_tokens(types.SimpleNamespace(generation_config=None), base) == {turn, base.eos_token_id}
    ids, mask = chat.encode(TALK, base)
    assert ids[max(i for i, on in enumerate(mask) if on)] == turn
    assert chat_template.end_of_turn(with_template(tokenizer, None)) is None
    assert chat_template.end_of_turn(with_template(tokenizer, "{{ raise_exception('no') }}")) is None


def test_tulu_ends_a_turn_with_the_end_of_sequence_of_any_tokenizer(tokenizer):
    """Of a base model: no token of its own for a turn's end, and a first token that must stay first."""
    text = shipped.find("chat_templates", "tulu", "model.chat_template").read_text()
    base = with_template(tokenizer, text)
    base.eos_token = base.bos_token = "<|endoftext|>"
    ids, mask = chat.encode(TALK, base)
    answers = [message["content"] for message in TALK if message["role"] == "assistant"]
    learned = base.decode([token for token, on in zip(ids, mask, strict=True) if on])
    assert learned == "".join(f"{answer}<|endoftext|>" for answer in answers)
    assert ids[0] == chat_template.end_of_turn(base) == base.eos_token_id
    assert ids.count(base.eos_token_id) == 1 + len(answers)
    assert (
        base.decode(sample.chat_prompt(base, "Which day?"))
        == "<|endoftext|><|user|>\nWhich day?\n<|assistant|>\n"
    )


def test_chatml_is_that_of_smollm2(tokenizer):
    text = shipped.find("chat_templates", "chatml", "model.chat_template").read_text()
    assert chat.encode(TALK, with_template(tokenizer, text)) == chat.encode(TALK, tokenizer)


def test_names_paths_and_what_is_neither(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tulu").write_text("mine")
    assert shipped.find("chat_templates", "./tulu", "k").read_text() == "mine"
    assert shipped.find("chat_templates", "tulu", "k").parent.name == "chat_templates"
    assert shipped.find("deepspeed", "zero3-offload", "k").name == "zero3-offload.json"
    own = Path("config/chat_templates/tulu.jinja")
    assert local_data.state({"chat_template": "tulu.jinja"}) == ""
    own.parent.mkdir(parents=True)
    own.write_text("the project's")
    assert shipped.find("chat_templates", "tulu", "k") == own
    assert str(own) in local_data.state({"model": {"chat_template": "tulu"}}), "an edited one reruns"
    with pytest.raises(
        InputError, match=r"model\.chat_template: alpaca: no such file; .*shipped one: chatml, tulu"
    ):
        shipped.find("chat_templates", "alpaca", "model.chat_template")
    with pytest.raises(InputError, match=r"k: gone/zero2\.json: no such file; .*zero1, zero2, "):
        shipped.find("deepspeed", "gone/zero2.json", "k")
