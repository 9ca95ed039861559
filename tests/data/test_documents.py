"""Cleaning: repair, every filter with its count, duplicates across domains, and the split."""

import itertools
import json
import random
from collections import Counter

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesaic.data import documents
from moesaic.data.duplicates import WORD, Duplicates, signature
from moesaic.data.split import SPLITS
from moesaic.errors import InputError
from moesaic.schema import Clean

WORDS = [
    "river",
    "stone",
    "bridge",
    "miller",
    "counted",
    "sacks",
    "grain",
    "city",
    "became",
    "centre",
    "trade",
    "university",
    "oldest",
    "country",
    "people",
    "winter",
]


def prose(seed: int, words: int = 120) -> str:
    """Varied text: no two seeds share more than a few 5-word shingles."""
    draw = random.Random(seed)
    return "\n".join(" ".join(draw.choices(WORDS, k=12)) for _ in range(words // 12))


def settings(domains: dict[str, str], validation: float = 0.2, seed: int = 0, **clean) -> dict:
    found = {name: {"sources": [{"at": {"kind": "files", "path": path}}]} for name, path in domains.items()}
    return {"domains": found, "clean": Clean(**clean).model_dump(), "validation": validation, "seed": seed}


def texts(found, domain: str) -> dict[str, list[str]]:
    return {s: pq.read_table(found.folder / f"{domain}.{s}.parquet")["text"].to_pylist() for s in SPLITS}


def stats(found) -> dict:
    return json.loads((found.folder / "stats.json").read_text())


def test_every_drop_is_counted_and_counts_add_up(write_jsonl, run_step):
    rows = [prose(i) for i in range(40)]
    near = rows[3].replace("river", "lake", 1)
    bad = [
        "",
        "  \n ",
        "too short",
        "y" * 5000,
        "1234567890 " * 40,
        "same line of text\n" * 40,
        rows[0],
        near,
    ]
    path = write_jsonl("web.jsonl", [{"text": text} for text in rows + bad])
    found = run_step("documents", settings({"web": path}, max_characters=4000))
    item = stats(found)["web"]
    dropped = {reason: count["documents"] for reason, count in item["dropped"].items()}
    expected = {"empty": 2, "too_short": 1, "too_long": 1, "few_letters": 1, "repeated_lines": 1}
    assert dropped == expected | {"exact_duplicate": 1, "near_duplicate": 1}
    assert item["documents_in"] == 48 == item["documents_kept"] + sum(dropped.values())
    assert item["characters_in"] == item["characters_kept"] + sum(
        c["characters"] for c in item["dropped"].values()
    )
    assert item["characters_kept"] == sum(len(t) for side in texts(found, "web").values() for t in side)
    assert found.metrics["domains"]["web"]["documents_dropped"] == 8
    assert sorted(t for side in texts(found, "web").values() for t in side) == sorted(rows)


def test_duplicates_are_found_across_domains(write_jsonl, run_step):
    shared = [prose(i) for i in range(30)]
    paths = {
        "first": write_jsonl("a.jsonl", [{"text": t} for t in shared]),
        "second": write_jsonl("b.jsonl", [{"text": t} for t in [prose(i) for i in range(100, 130)] + shared]),
    }
    found = run_step("documents", settings(paths))
    assert stats(found)["second"]["dropped"]["exact_duplicate"]["documents"] == 30
    assert stats(found)["second"]["documents_kept"] == 30


def test_near_duplicates_follow_the_jaccard_threshold():
    base = prose(1, 600).split()

    def jaccard(a: list[str], b: list[str]) -> float:
        left, right = ({tuple(t[i : i + 5]) for i in range(len(t) - 4)} for t in (a, b))
        return len(left & right) / len(left | right)

    for changed in (3, 10, 20, 40, 80):
        other = list(base)
        for place in random.Random(changed).sample(range(len(base)), changed):
            other[place] = "changed"
        true = jaccard(base, other)
        assert abs(signature(" ".join(base)).jaccard(signature(" ".join(other))) - true) < 0.13
        check = Duplicates(0.8)
        assert check.check(" ".join(base)) is None
        if abs(true - 0.8) > 0.1:
            assert check.check(" ".join(other)) == ("near_duplicate" if true > 0.8 else None), true


@pytest.mark.parametrize("script", ["漢字", "かなカナ漢字", "ไทย"])
def test_near_duplicates_are_found_without_spaces_between_words(script):
    """One sign changed in 600; another text of the same signs is none."""
    first, last = {"漢字": (0x4E00, 0x5500), "かなカナ漢字": (0x3041, 0x30FA), "ไทย": (0xE01, 0xE3A)}[script]
    made = random.Random(0)
    one, other = ("".join(chr(made.randrange(first, last)) for _ in range(600)) for _ in range(2))
    check = Duplicates(0.8)
    assert check.check(one) is None
    assert check.check(one[:300] + script[0] + one[301:]) == "near_duplicate"
    assert check.check("\n".join(one[i : i + 60] for i in range(0, 600, 60))) == "near_duplicate"
    assert check.check(other) is None


def test_words_with_spaces_are_what_they_were():
    """Accents, Cyrillic, Korean (which has spaces), any white space: no document that was kept is dropped now."""
    text = "größe und\u2003maß\x1fЮлия ждёт\u3000 하늘과 바람과 별과 시 naïve\x85café"
    assert WORD.findall(text) == text.split()
    assert WORD.findall("日本 is 日 本") == ["日", "本", "is", "日", "本"]


def test_near_duplicates_can_be_switched_off():
    check = Duplicates(1.0)
    assert check.check(prose(1)) is None
    assert check.check(prose(1) + " more") is None
    assert check.check(prose(1)) == "exact_duplicate"


def test_short_texts_have_a_signature():
    assert signature("two words").jaccard(signature("two words")) == 1.0
    assert signature("two words").jaccard(signature("other words")) < 0.2
    assert len(signature("").hashvalues) == 128


@pytest.mark.parametrize(
    ("broken", "whole"),
    [
        ("schÃ¶n wie im MÃ¤rz", "schön wie im März"),
        ("donâ€™t", "don\u2019t"),
        ("e\u0301te\u0301", "été"),
        ("a\r\nb\rc", "a\nb\nc"),
        ("bell\x07 and \x1b[31mred\x1b[0m", "bell and red"),
        ("lone \ud800 surrogate", "lone \ufffd surrogate"),
        ("if a &amp;&amp; b: “quoted” ﬁn \uff01", "if a &amp;&amp; b: “quoted” ﬁn \uff01"),
    ],
)
def test_repair(broken, whole):
    assert documents.repair(broken) == whole
    assert documents.repair(whole) == whole


@given(st.text())
def test_repaired_text_can_be_written(text):
    documents.repair(text).encode()


def test_letters_count_every_script():
    assert documents.letters("हिन्दी में लिखा हुआ पाठ") == 1.0
    assert documents.letters("ab12") == 0.5
    assert documents.repeated_lines("a\n\n  a\nb") == pytest.approx(1 / 3)


def test_same_seed_same_bytes_other_seed_other_split(write_jsonl, run_step):
    path = write_jsonl("web.jsonl", [{"text": prose(i)} for i in range(60)])
    first, again = (run_step("documents", settings({"web": path}), out=f"run{i}") for i in range(2))
    other = run_step("documents", settings({"web": path}, seed=1), out="run2")
    assert [o.sha256 for o in first.outputs] == [o.sha256 for o in again.outputs]
    assert texts(first, "web")["validation"] != texts(other, "web")["validation"]
    both = [Counter(itertools.chain(*texts(found, "web").values())) for found in (first, other)]
    assert both[0] == both[1]


def test_a_document_stays_on_its_side_when_the_corpus_grows(write_jsonl, run_step):
    path = write_jsonl("web.jsonl", [{"text": prose(i)} for i in range(40)])
    small = texts(run_step("documents", settings({"web": path}), out="small"), "web")
    write_jsonl("web.jsonl", [{"text": prose(i)} for i in range(80)])
    large = texts(run_step("documents", settings({"web": path}), out="large"), "web")
    assert all(set(small[side]) <= set(large[side]) for side in SPLITS)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], r"data\.domains\.web: empty, its sources hold no document"),
        (
            [{"text": "short"}],
            r"data\.domains\.web: empty, none of its 1 documents passed data\.clean \(too_short 1\)",
        ),
        (
            [{"text": prose(1)}],
            r"data\.domains\.web: empty (train|validation) split, 1 documents are too few",
        ),
    ],
)
def test_an_empty_domain_is_an_error_and_leaves_no_file(write_jsonl, run_step, tmp_path, rows, message):
    with pytest.raises(InputError, match=message):
        run_step("documents", settings({"web": write_jsonl("web.jsonl", rows)}))
    assert not list(tmp_path.rglob("*.parquet"))


def test_row_groups_bound_the_readers_memory(write_jsonl, run_step, monkeypatch):
    monkeypatch.setattr(documents, "GROUP_DOCUMENTS", 8)
    path = write_jsonl("web.jsonl", [{"text": prose(i)} for i in range(60)])
    found = run_step("documents", settings({"web": path}))
    sizes = pq.ParquetFile(found.folder / "web.train.parquet").metadata
    assert max(sizes.row_group(i).num_rows for i in range(sizes.num_row_groups)) == 8
