"""Conversations: the loss falls exactly on the answers, every drop is counted, and questions do not straddle the split."""

import json

import numpy as np
import pytest

from moesaic.data import chat, chat_sets, conversations
from moesaic.data.split import SPLITS
from moesaic.errors import InputError
from moesaic.evaluate.reliability import asked as tested
from moesaic.flow import local_data
from moesaic.schema import Chat, Reliability


def alpaca(i: int, **changes) -> dict:
    return {
        "instruction": f"What is {i} and one?",
        "input": "",
        "output": f"It is {i + 1}.\nYes, naïve 🙂.",
    } | changes


def settings(path: str, form: str = "alpaca", seed: int = 0, **changes) -> dict:
    source = {"at": {"kind": "files", "path": path}, "format": form, "name": "set"}
    found = Chat.model_validate({"sources": [source], "validation": 0.2} | changes)
    return {"chat": found.model_dump(mode="json"), "seed": seed}


def masked(ids, mask) -> list[list[int]]:
    """The runs of ids under a mask of 1."""
    runs, inside = [], False
    for token, on in zip(ids, mask, strict=True):
        if on and not inside:
            runs.append([])
        if on:
            runs[-1].append(int(token))
        inside = bool(on)
    return runs


TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Größe?"},
    {"role": "assistant", "content": "Two: 東京 and\none."},
    {"role": "user", "content": "And <b>then</b>?"},
    {"role": "assistant", "content": "Nothing."},
]


def test_the_mask_covers_exactly_the_answers_and_their_end(tokenizer):
    ids, mask = chat.encode(TALK, tokenizer)
    assert tokenizer.decode(ids) == tokenizer.apply_chat_template(TALK, tokenize=False)
    answers = [m["content"] for m in TALK if m["role"] == "assistant"]
    runs = masked(ids, mask)
    assert [tokenizer.decode(run[:-1]) for run in runs] == answers
    assert all(run[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>") for run in runs)


def test_what_stands_before_an_answer_is_what_generation_starts_from(tokenizer):
    ids, mask = chat.encode(TALK[:3], tokenizer)
    prompt = tokenizer.apply_chat_template(TALK[:2], tokenize=False, add_generation_prompt=True)
    start = mask.index(1)
    assert ids[:start] == tokenizer(prompt, add_special_tokens=False)["input_ids"]


def test_a_spelled_out_special_token_is_no_conversation(tokenizer):
    talk = [{"role": "user", "content": "Hi <|im_end|>"}, {"role": "assistant", "content": "Hi"}]
    with pytest.raises(chat.Dropped, match="special_token"):
        chat.encode(talk, tokenizer)


def test_formats_agree():
    expected = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "Q\n\nmore"},
        {"role": "assistant", "content": "A"},
    ]
    assert (
        conversations.alpaca({"instruction": "Q", "input": "more", "output": " A\n", "system": "S"})
        == expected
    )
    assert conversations.messages({"messages": expected}) == expected
    turns = [
        {"from": f, "value": m["content"]} for f, m in zip(("system", "human", "gpt"), expected, strict=True)
    ]
    assert conversations.sharegpt({"conversations": turns}) == expected


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"messages": "text"},
        {"messages": []},
        {"messages": [{"role": "user", "content": "no answer"}]},
        {"messages": [{"role": "assistant", "content": "no question"}]},
        {"messages": [{"role": "user", "content": None}, {"role": "assistant", "content": "a"}]},
        {"messages": [{"role": "user", "content": "q"}, {"role": "tool", "content": "a"}]},
        {"messages": [{"role": "user", "content": " "}, {"role": "assistant", "content": "a"}]},
    ],
)
def test_malformed_messages(record):
    assert conversations.messages(record) is None


def test_tool_calls_are_the_models_turns():
    turns = [("human", "Cook?"), ("function_call", '{"name": "f"}'), ("observation", "[1]"), ("gpt", "Done.")]
    record = {
        "conversations": [{"from": role, "value": text} for role, text in turns],
        "tools": '[{"name": "f"}]',
    }
    roles = ["system", "user", "assistant", "user", "assistant"]
    found = conversations.sharegpt(record)
    assert [m["role"] for m in found] == roles
    assert found[0]["content"] == 'Tools:\n[{"name": "f"}]'
    assert [m["role"] for m in conversations.sharegpt(record | {"tools": "[]"})] == roles[1:]
    prompted = conversations.sharegpt(record | {"tools": "", "system_prompt": "Be brief."})
    assert prompted[0] == {"role": "system", "content": "Be brief."}
    assert conversations.sharegpt(record | {"tools": 3}) is None
    told = {"conversations": [{"from": "system", "value": "Be brief."}, *record["conversations"]]}
    assert conversations.sharegpt(record | told)[0]["content"] == 'Be brief.\n\nTools:\n[{"name": "f"}]'


def test_templates_take_any_fields():
    record = {"passage": "P", "question": "Q {braces}?", "answer": ["Yes", "Right"], "n": 3, "none": None}
    found = conversations.template(record, "{passage}\n\n{question} ({n})", "{answer}")
    assert [m["content"] for m in found] == ["P\n\nQ {braces}? (3)", "Yes"]
    for prompt, answer in (("{missing}", "{answer}"), ("{question}", "{none}")):
        assert conversations.template(record, prompt, answer) is None
    assert conversations.template(record | {"answer": []}, "{question}", "{answer}") is None
    table = {"Question Text": "Which?", "options": ["red", "green", 3], "correct-answer": "red"}
    found = conversations.template(table, "{Question Text}\n{options}", "{correct-answer}")
    assert [m["content"] for m in found] == ["Which?\nred\ngreen\n3", "red"]
    assert conversations.template(table | {"options": ["red", None]}, "{options}", "{correct-answer}") is None
    source = {"at": {"kind": "files", "path": "x"}, "format": "template", "prompt": "{q}"}
    with pytest.raises(ValueError, match="template needs prompt and answer"):
        Chat.model_validate({"sources": [source]})
    with pytest.raises(ValueError, match="answer: 'yes' names no field"):
        Chat.model_validate({"sources": [source | {"answer": "yes"}]})
    with pytest.raises(ValueError, match="prompt: only for format: template, not for alpaca"):
        Chat.model_validate({"sources": [source | {"format": "alpaca"}]})


def test_a_template_that_fits_no_record_is_named(write_jsonl, dense, run_step):
    path = write_jsonl("qa.jsonl", [{"question": f"Q{i}", "answer": "A"} for i in range(30)])
    own = settings(path)
    own["chat"]["sources"][0] |= {
        "format": "template",
        "prompt": "{passage} {question}",
        "answer": "{answer}",
    }
    with pytest.raises(
        InputError, match=r"form of 'template' \(passage, question, answer\); its fields are question, answer"
    ):
        run_step("chat", own, {"dense": dense()})
    own["chat"]["sources"][0]["prompt"] = "{question}"
    found = run_step("chat", own, {"dense": dense()})
    assert sum(found.metrics["conversations"].values()) == 30


def test_step_counts_every_conversation(write_jsonl, dense, run_step, tokenizer):
    bad = [
        alpaca(0),
        alpaca(900, output="  "),
        alpaca(901, output=None),
        alpaca(902, output="long " * 600),
        alpaca(903, output="<|endoftext|>"),
    ]
    path = write_jsonl("chat.jsonl", [alpaca(i) for i in range(60)] + bad)
    found = run_step("chat", settings(path), {"dense": dense()})
    stats = json.loads((found.folder / "stats.json").read_text())["set"]
    assert stats["dropped"] == {
        "duplicate": 1,
        "empty_answer": 1,
        "malformed": 1,
        "too_long": 1,
        "special_token": 1,
    }
    assert stats["conversations_in"] == 65 == stats["conversations_kept"] + 5
    sets = {split: chat_sets.open_chat(found, split)["set"] for split in SPLITS}
    assert {split: len(items) for split, items in sets.items()} == found.metrics["conversations"]
    assert sum(len(items) for items in sets.values()) == 60
    answers = set()
    for split, items in sets.items():
        rows = [items[i] for i in range(len(items))]
        assert sum(int(mask.sum()) for _, mask in rows) == found.metrics["answer_tokens"][split]
        assert all(ids.dtype == np.int32 and ids.shape == mask.shape for ids, mask in rows)
        answers |= {tokenizer.decode(masked(ids, mask)[0][:-1]) for ids, mask in rows}
    assert answers == {alpaca(i)["output"] for i in range(60)}


def test_equal_questions_do_not_straddle_the_split(write_jsonl, dense, run_step, tokenizer):
    rows = [alpaca(i, output=f"Answer {k}.") for i in range(30) for k in range(3)]
    found = run_step("chat", settings(write_jsonl("chat.jsonl", rows)), {"dense": dense()})
    asked = {}
    for split in SPLITS:
        items = chat_sets.open_chat(found, split)["set"]
        texts = [tokenizer.decode(items[i][0]) for i in range(len(items))]
        asked[split] = {text.split("one?")[0] for text in texts}
    assert sum(map(len, asked.values())) == 30
    assert not asked["train"] & asked["validation"]


def test_same_seed_same_bytes_other_seed_other_split(write_jsonl, dense, run_step):
    path, inputs = write_jsonl("chat.jsonl", [alpaca(i) for i in range(60)]), {"dense": dense()}
    runs = [
        run_step("chat", settings(path, seed=seed), inputs, out=f"run{i}") for i, seed in enumerate((0, 0, 1))
    ]
    digests = [[o.sha256 for o in run.outputs if o.path == "validation.parquet"] for run in runs]
    assert digests[0] == digests[1] != digests[2]


def test_several_sources_keep_their_names(write_jsonl, dense, run_step):
    def source(name: str, first: int, limit: int | None = None) -> dict:
        path = write_jsonl(f"{name}.jsonl", [alpaca(i) for i in range(first, first + 40)])
        return {"at": {"kind": "files", "path": path}, "name": name, "max_conversations": limit}

    value = {
        "chat": Chat.model_validate({"sources": [source("a", 0), source("b", 100, 30)]}).model_dump(
            mode="json"
        )
    }
    found = run_step("chat", value | {"seed": 0}, {"dense": dense()})
    assert found.metrics["sources"] == ["a", "b"]
    both = [chat_sets.open_chat(found, split) for split in SPLITS]
    assert [sum(len(sets[name]) for sets in both) for name in ("a", "b")] == [40, 30]


def rows_kept(found) -> set[int]:
    """The rows of the one source that are on either side."""
    ids = [key for split in SPLITS for key in chat_sets.open_chat(found, split)["set"].ids]
    return {int(key.rsplit(":", 1)[1]) for key in ids}


def test_only_records_with_the_wanted_fields_are_read(write_jsonl, dense, run_step):
    rows = [alpaca(i, label=i % 2) for i in range(60)]
    value = settings(write_jsonl("chat.jsonl", rows))
    source = value["chat"]["sources"][0]
    source |= {"where": {"label": "1"}, "max_conversations": 20}
    found = run_step("chat", value, {"dense": dense()})
    assert sum(found.metrics["conversations"].values()) == 20
    assert rows_kept(found) == set(range(1, 40, 2))
    source["where"] = {"labl": "1"}
    with pytest.raises(InputError, match=r"data\.chat\.sources\.0\.where: no field 'labl'; .* label"):
        run_step("chat", value, {"dense": dense()})
    source["where"] = {"label": "yes"}
    with pytest.raises(InputError, match=r"data\.chat\.sources\.0: empty, .*`where`"):
        run_step("chat", value, {"dense": dense()})


def test_what_the_reliability_suite_asks_is_not_trained_on(tmp_path, write_jsonl, dense, run_step):
    asked = [" WHAT is  3 and\none?", "What is 5 and one?"]
    safety = tmp_path / "safety"
    safety.mkdir()
    (safety / "advbench.csv").write_text("goal\n" + "".join(f'"{text}"\n' for text in asked))
    sets = Reliability(sets=["advbench", "sentences"], folder=str(safety), items=3)
    value = settings(write_jsonl("chat.jsonl", [alpaca(i) for i in range(40)]))
    own = tested.settings(sets.model_dump(mode="json"))
    # another set of no instructions, an attack or a longer answer is no reason to tune again
    more = {"sets": ["advbench"], "attacks": [], "answer_tokens": 7, "texts": 0, "prompt": "instruction"}
    assert tested.settings(sets.model_dump(mode="json") | more) == own
    assert tested.settings(sets.model_dump(mode="json") | {"items": 4}) != own
    assert str(safety / "advbench.csv") in local_data.state(own)
    assert tested.settings({"sets": ["sentences"], "folder": None}) == {}
    found = run_step("chat", value | own, {"dense": dense()})
    stats = json.loads((found.folder / "stats.json").read_text())
    assert stats["set"]["dropped"] == {"in_reliability": 2}
    assert rows_kept(found) == set(range(40)) - {3, 5}
    sets = sets.model_copy(update={"items": 1})  # what is not asked may be trained on
    found = run_step(
        "chat", value | tested.settings(sets.model_dump(mode="json")), {"dense": dense()}, out="one"
    )
    assert json.loads((found.folder / "stats.json").read_text())["set"]["dropped"] == {"in_reliability": 1}


def test_template_that_rewrites_earlier_turns_is_refused(write_jsonl, dense, run_step, tokenizer):
    import copy

    changed = copy.deepcopy(tokenizer)
    changed.chat_template = (
        "{{ messages|length }}{% for m in messages %}{{ m['content'] }}{% endfor %}<|im_end|>"
    )
    path = write_jsonl("chat.jsonl", [alpaca(i) for i in range(5)])
    with pytest.raises(InputError, match=r"model\.chat_template: .*answers cannot be told apart"):
        run_step("chat", settings(path), {"dense": dense(changed)})


CHATML = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (CHATML, "leaves the assistant's header out"),  # its mask would cover <|im_start|> alone
        ("{{ raise_exception('no') }}", "refuses every conversation"),
    ],
)
def test_templates_that_cannot_tell_answers_apart_are_refused(
    write_jsonl, dense, run_step, tokenizer, template, words
):
    import copy

    changed = copy.deepcopy(tokenizer)
    changed.chat_template = template
    path = write_jsonl("chat.jsonl", [alpaca(i) for i in range(5)])
    with pytest.raises(InputError, match=f"model\\.chat_template: .*{words}"):
        run_step("chat", settings(path), {"dense": dense(changed)})


def test_a_header_by_the_generation_prompt_is_no_part_of_the_answer(tokenizer):
    import copy

    changed = copy.deepcopy(tokenizer)
    changed.chat_template = CHATML + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ids, mask = chat.encode(TALK, changed)
    assert [changed.decode(run[:-1]) for run in masked(ids, mask)] == ["Two: 東京 and\none.", "Nothing."]


def test_half_of_a_character_is_replaced(tokenizer):
    found = conversations.alpaca(
        json.loads('{"instruction": "Hi \\ud83d!", "output": "\\ud83d\\ude42 \\udc00"}')
    )
    assert [m["content"] for m in found] == ["Hi \ufffd!", "🙂 \ufffd"]
    chat.encode(found, tokenizer)


def test_errors_name_the_key(write_jsonl, dense, run_step, tokenizer):
    import copy

    inputs = {"dense": dense()}
    with pytest.raises(InputError, match=r"data\.chat\.sources is empty: add a source"):
        run_step("chat", {"chat": Chat().model_dump(), "seed": 0}, inputs)
    path = write_jsonl("chat.jsonl", [alpaca(i) for i in range(5)])
    with pytest.raises(
        InputError,
        match=r"data\.chat\.sources\.0\.format: no record has the form of 'messages' .* instruction, input, output",
    ):
        run_step("chat", settings(path, "messages"), inputs)
    with pytest.raises(InputError, match=r"data\.chat\.sources\.0: empty"):
        run_step("chat", settings(write_jsonl("none.jsonl", [])), inputs)
    with pytest.raises(InputError, match=r"data\.chat: empty validation split of 5 usable conversations"):
        run_step("chat", settings(path, validation=1e-9), inputs)
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    with pytest.raises(InputError, match=r"model\.chat_template: the model's tokenizer has no chat template"):
        run_step("chat", settings(path), {"dense": dense(bare, name="bare")})


def test_a_damaged_file_is_named(write_jsonl, dense, run_step):
    path = write_jsonl("chat.jsonl", [alpaca(i) for i in range(30)])
    found = run_step("chat", settings(path), {"dense": dense()})
    file = found.folder / "train.parquet"
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(InputError, match=r"train\.parquet: missing or damaged .* run the chat step again"):
        chat_sets.open_chat(found, "train")
