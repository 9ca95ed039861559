"""Questions of the instruction data: each is asked once."""

from types import SimpleNamespace

import numpy as np
import pytest

from moesaic.data import chat_sets, questions
from moesaic.errors import InputError
from moesaic.flow import manifest


def conversation(prompt, answer):
    return np.array(prompt + answer), np.array([0] * len(prompt) + [1] * len(answer))


@pytest.fixture
def chats(tmp_path, monkeypatch):
    sets = {
        "b": [
            conversation([1, 2], [7]),
            conversation([1, 2], [8]),
            conversation([5], [9]),
            conversation([1], [2, 3]),
        ],
        "a": [conversation([4], [7]), conversation([5], [1])],
    }
    monkeypatch.setattr(manifest, "verify", lambda *_, **__: None)
    monkeypatch.setattr(chat_sets, "open_chat", lambda *_: sets)
    return SimpleNamespace(folder=tmp_path)


def test_equal_prompts_are_asked_once(chats, caplog):
    """Rows of one source with several answers, and another source's same question; what is tokens alone cannot tell [1, 2] from [1], [2]."""
    caplog.set_level("INFO")
    found, long = questions.read(chats, "train")
    assert [(item.id, item.prompt, item.answer) for item in found] == [
        ("a/0", [4], [7]), ("a/1", [5], [1]), ("b/0", [1, 2], [7]), ("b/3", [1], [2, 3]),
    ]  # fmt: skip
    assert long == 0
    assert "distill.samples: 2 questions that were asked already are left out" in caplog.text


def test_how_many_of_a_source_counts_what_is_asked(chats):
    found, long = questions.read(chats, "train", ["b"], per_source=2)
    assert [item.id for item in found] == ["b/0", "b/2"]
    found, long = questions.read(chats, "train", ["b"], max_prompt=1)
    assert ([item.id for item in found], long) == (["b/2", "b/3"], 2)
    with pytest.raises(InputError, match=r"x\.sources: no chat source named c"):
        questions.read(chats, "train", ["c"], key="x")
