"""The suite on a tiny model: the harness alone gives the same scores, a killed run goes on, routing and stress against brute force."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import project
import pytest
import torch
from tiny import tiny_llama

from moesaic.errors import InputError
from moesaic.evaluate import compare, harness, likelihood
from moesaic.evaluate.reliability import moe, suite
from moesaic.evaluate.scores import item_table
from moesaic.flow import files, manifest, step
from moesaic.model import families
from moesaic.schema import Evaluate, Reliability

TOK = project.tokenizer_of_library()
SENTENCES = [
    {
        "sentence": f"this film number {i} was {'great' if i % 2 else 'dull'} before the end for you",
        "label": i % 2,
    }
    for i in range(12)
]


def settings(**changes):
    plain = {"tasks": [], "bootstrap": 100, "batch": 4, "reliability": {"dola": {"layers": [1, 2]}}}
    return Evaluate(**(plain | changes)).model_dump(mode="json")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A finished step in a project folder; the working directory is the project's."""
    root = tmp_path_factory.mktemp("project")
    sets = root / "sets"
    sets.mkdir()
    text = "sentence,label\n" + "".join(f"{row['sentence']},{row['label']}\n" for row in SENTENCES)
    (sets / "sentences.csv").write_text(text)
    head = (
        "Type,Category,Question,Best Answer,Best Incorrect Answer,Correct Answers,Incorrect Answers,Source\n"
    )
    rows = "".join(f"a,b,Does thing {i} grow?,No,Yes,No; Never,Yes; Always,c\n" for i in range(6))
    (sets / "TruthfulQA.csv").write_text(head + rows)
    values = Reliability(
        sets=["sentences", "truthfulqa", "lookalikes", "cona"],
        folder=str(sets),
        items=6,
        texts=5,
        answer_tokens=4,
    ).model_dump(mode="json")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        out = root / "results/prepare/reliability"
        relative = out.relative_to(root)
        step.execute(step.STEPS["reliability"], {"reliability": values}, {}, relative)
        yield manifest.read(relative)


@pytest.fixture(scope="module")
def model():
    return tiny_llama(max_position_embeddings=1024)


@pytest.fixture(scope="module")
def found(source, model, tmp_path_factory):
    return suite.run(model, TOK, settings(), source, tmp_path_factory.mktemp("work"), 0, "model-1")


def scores(found):
    return {(item.task, metric.name): metric for item in found.tasks for metric in item.metrics}


def test_every_axis_has_its_rows(found):
    got = scores(found)
    assert got["rel_sentences_plain", "acc"].chance == 0.5
    assert got["rel_truthfulqa_mc2", "acc"].chance == 0.5
    assert got["reliability/hallucination", "acc"].estimate.n == 6  # questions, not their three forms
    assert got["reliability/style", "acc"].estimate.n == 6
    assert got["reliability/over_refusal", "refusal"].chance is None
    assert ("reliability/refusal", "refusal") not in got  # cona is missing
    assert sorted(found.report["missing"]) == ["cona"]
    style = [
        got[f"rel_sentences_{name}", "acc"].estimate.value
        for name in ("typos", "capitals", "shakespeare", "bible", "tweet")
    ]
    assert got["reliability/style", "acc"].estimate.value == pytest.approx(np.mean(style))
    drop = got["rel_sentences_plain", "acc"].estimate.value - np.mean(style)
    assert got["reliability/style_drop", "acc_drop"].estimate.value == pytest.approx(drop)
    assert got["reliability/style_drop", "acc_drop"].estimate.n == 6
    assert got["reliability/calibration", "ece"].estimate.n == 6 * 6 + 2 * 6
    bins = found.report["bins"]["rel_sentences_plain"]
    assert sum(item["n"] for item in bins) == 6
    assert "rel_truthfulqa_mc2" not in found.report["bins"]


def test_rows_with_dola_stand_beside_those_without(source, model, found, tmp_path):
    got = scores(found)
    assert (
        got["reliability/hallucination_dola", "acc"].chance == got["reliability/hallucination", "acc"].chance
    )
    forms = [f"rel_truthfulqa_{form}" for form in ("mc1", "mc2", "binary")]
    gain = np.mean([got[f"{f}_dola", "acc"].estimate.value - got[f, "acc"].estimate.value for f in forms])
    assert got["reliability/dola_gain", "acc_gain"].estimate.value == pytest.approx(gain)
    assert "rel_truthfulqa_mc1_dola" not in found.report["bins"]
    without = suite.run(model, TOK, settings(reliability={}), source, tmp_path, 0, "model-1")
    rest = {key: metric for key, metric in got.items() if "dola" not in key[0]}
    assert scores(without) == rest  # DoLa changes nothing of the others


@pytest.mark.slow
def test_the_harness_alone_gives_the_same_scores(source, model, found, tmp_path):
    """lm_eval as a command where moesaic cannot be imported."""
    model.save_pretrained(tmp_path / "model")
    TOK.save_pretrained(tmp_path / "model")
    (tmp_path / "hide").mkdir()
    (tmp_path / "hide/sitecustomize.py").write_text(
        "import sys\n"
        "class No:\n"
        "    def find_spec(self, name, *a):\n"
        "        if name.split('.')[0] == 'moesaic': raise ImportError('moesaic is hidden')\n"
        "sys.meta_path.insert(0, No())\n"
    )
    got = scores(found)
    for tasks, extra in (
        ("rel_truthfulqa_mc1,rel_truthfulqa_mc2,rel_sentences_typos", []),
        ("rel_lookalikes", ["--apply_chat_template"]),
    ):
        command = [
            sys.executable,
            "-m",
            "lm_eval",
            "--model",
            "hf",
            "--model_args",
            f"pretrained={tmp_path}/model",
            "--device",
            "cpu",
        ]
        command += [
            "--include_path",
            str(source.folder / "tasks"),
            "--tasks",
            tasks,
            "--output_path",
            str(tmp_path / "out.json"),
            *extra,
        ]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=os.environ
            | {"PYTHONPATH": str(tmp_path / "hide"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr[-2000:]
        (result,) = tmp_path.glob("out_*.json")
        for task, values in json.loads(result.read_text())["results"].items():
            for key, value in values.items():
                metric = key.partition(",")[0]
                if (task, metric) in got:
                    assert got[task, metric].estimate.value == pytest.approx(value, rel=1e-5), (task, metric)
        assert len(json.loads(result.read_text())["results"]) == len(tasks.split(","))
        result.unlink()


def test_a_killed_run_repeats_only_the_unfinished_task(source, model, found, tmp_path, monkeypatch):
    real, ran = harness._evaluate, []

    def counted(lm, tasks, *rest):
        ran.extend(tasks["tasks"])
        if len(ran) == 4:
            raise KeyboardInterrupt
        return real(lm, tasks, *rest)

    monkeypatch.setattr(harness, "_evaluate", counted)
    with pytest.raises(KeyboardInterrupt):
        suite.run(model, TOK, settings(), source, tmp_path, 0, "model-1")
    done, unfinished = ran[:3], ran[3]
    ran[:] = ["-"] * 4
    again = suite.run(model, TOK, settings(), source, tmp_path, 0, "model-1")
    assert ran[4] == unfinished
    assert not set(ran) & set(done)
    assert len(ran) - 4 + 3 == len(found.report["tasks"])
    for one, other in zip(again.tasks, found.tasks, strict=True):
        assert (one.task, one.metrics, one.keys, one.group) == (
            other.task,
            other.metrics,
            other.keys,
            other.group,
        )
        assert {name: values.tolist() for name, values in one.items.items()} == {
            name: values.tolist() for name, values in other.items.items()
        }
    ran[:] = ["-"] * 4
    suite.run(model, TOK, settings(), source, tmp_path, 0, "model-1")
    assert ran == ["-"] * 4
    suite.run(model, TOK, settings(), source, tmp_path, 0, "model-2")
    assert len(ran) - 4 == len(found.report["tasks"])


def test_a_damaged_kept_file_is_named(source, model, tmp_path):
    suite.run(model, TOK, settings(items=1), source, tmp_path, 0, "m")
    kept = next((tmp_path / "tasks").glob("rel_sentences_bible-*.json"))
    kept.write_text("[{")
    with pytest.raises(InputError, match=f"{kept.name}: damaged"):
        suite.run(model, TOK, settings(items=1), source, tmp_path, 0, "m")


def test_without_a_chat_template_the_key_is_named(source, model, tmp_path):
    bare = project.tokenizer_of_library()
    bare.chat_template = None
    with pytest.raises(InputError, match=r"data.reliability.prompt: chat, but .* has no chat template"):
        suite.run(model, bare, settings(), source, tmp_path, 0, "m")


# ---------------------------------------------------------------- paired comparison


def test_paired_differences_of_two_evaluations(source, found, tmp_path):
    other = suite.run(
        tiny_llama(seed=5, max_position_embeddings=1024), TOK, settings(), source, tmp_path, 0, "model-5"
    )
    text = likelihood.DomainLoss(np.array([3.0, 4.0]), np.array([8, 9]), np.array([2, 2]), ["a", "b"], None)
    paths = []
    for name, result in (("a", found), ("b", other)):
        item_table({"d": text}, set(), result.tasks).to_parquet(tmp_path / name)
        paths.append(tmp_path / name)
    rows = {(row["task"], row["metric"]): row for row in compare.table(*paths, resamples=200)}
    one, two = scores(found), scores(other)
    for key in [
        ("rel_sentences_typos", "acc"),
        ("rel_sentences_plain", "ece"),
        ("rel_truthfulqa_mc2", "acc"),
        ("reliability/style", "acc"),
        ("reliability/over_refusal", "refusal"),
    ]:
        assert rows[key]["value"] == pytest.approx(
            one[key].estimate.value - two[key].estimate.value, abs=2e-6
        ), key
    assert all(
        row["ci_low"] <= row["value"] <= row["ci_high"] for row in rows.values() if row["metric"] != "ece"
    )
    same = compare.table(paths[0], paths[0], resamples=100)
    assert {(row["value"], row["ci_low"], row["ci_high"]) for row in same} == {(0.0, 0.0, 0.0)}


# ---------------------------------------------------------------- routers


def build(kind):
    import transformers

    torch.manual_seed(0)
    base = {
        "vocab_size": 512, "hidden_size": 48, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 6,
        "num_key_value_heads": 2, "max_position_embeddings": 256, "num_experts_per_tok": 2, "initializer_range": 0.2,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
    }  # fmt: skip
    if kind == "mixtral":
        return transformers.MixtralForCausalLM(
            transformers.MixtralConfig(**base, num_local_experts=4, sliding_window=None)
        ).eval()
    if kind == "granite":
        return transformers.GraniteMoeSharedForCausalLM(
            transformers.GraniteMoeSharedConfig(**base, num_local_experts=4, shared_intermediate_size=16)
        ).eval()
    if kind == "qwen2":
        return transformers.Qwen2MoeForCausalLM(
            transformers.Qwen2MoeConfig(
                **base,
                num_experts=4,
                moe_intermediate_size=16,
                shared_expert_intermediate_size=16,
                norm_topk_prob=True,
            )
        ).eval()
    made = transformers.Glm4MoeForCausalLM(
        transformers.Glm4MoeConfig(
            **base,
            n_routed_experts=4,
            moe_intermediate_size=16,
            n_shared_experts=1,
            first_k_dense_replace=0,
            n_group=1,
            topk_group=1,
            norm_topk_prob=True,
            routed_scaling_factor=1.0,
            use_qk_norm=False,
            num_mtp_layers=0,
            head_dim=8,
        )
    ).eval()
    with torch.no_grad():
        for part in families.parts(made):
            part.router.weight.normal_(0, 0.3)
            part.router.e_score_correction_bias.uniform_(-0.2, 0.2)
    return made


KINDS = ["mixtral", "granite", "qwen2", "glm4"]
TEXTS = ["def one(x):", "return the largest number of the two", "import os", "class Thing: pass  # no more"]


@pytest.mark.parametrize("kind", KINDS)
def test_texts_in_a_batch_are_as_each_alone(kind):
    model = build(kind)
    whole = moe.measure(model, TOK, TEXTS, 4)
    alone = [moe.measure(model, TOK, [text], 1) for text in TEXTS]
    np.testing.assert_allclose(whole.nats_N, [group.nats_N[0] for group in alone], rtol=1e-5)
    assert (whole.slots_NLE == np.concatenate([group.slots_NLE for group in alone])).all()
    ids = [1, *TOK(TEXTS[1])["input_ids"]]
    with torch.no_grad():
        loss = model(input_ids=torch.tensor([ids]), labels=torch.tensor([ids])).loss
    assert whole.nats_N[1] == pytest.approx(float(loss) * (len(ids) - 1), rel=1e-5)
    assert whole.slots_NLE[1].sum(-1).tolist() == [2 * len(ids)] * 2


def test_a_dense_model_has_no_slots(model):
    assert moe.measure(model, TOK, TEXTS, 2).slots_NLE is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("expert", [0, 3])
def test_a_lost_expert_is_as_if_the_router_did_not_know_it(kind, expert):
    model = build(kind)
    ids = torch.randint(3, 512, (2, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = model(input_ids=ids).logits
        with moe.without(model, expert), families.Routing(model) as recorded:
            lost = model(input_ids=ids).logits
            chosen = torch.cat([recorded.indices[i].flatten() for i in range(2)])
        assert not (chosen == expert).any()
        assert (lost - before).abs().max() > 1e-3
        assert torch.equal(model(input_ids=ids).logits, before)
        # Brute force: the choice and the weights from logits in which the expert is impossible.
        hooks = []
        for part in families.parts(model):
            if kind == "glm4":
                part.router.e_score_correction_bias[expert] = -1e9
                continue

            def hook(router, _inputs, output):
                logits = output[0].float().clone()
                logits[:, expert] = float("-inf")
                top, index = logits.topk(2, dim=-1)
                return output[0], top.softmax(-1).to(output[1].dtype), index

            hooks.append(part.router.register_forward_hook(hook))
        wanted = model(input_ids=ids).logits
        for item in hooks:
            item.remove()
    torch.testing.assert_close(lost, wanted, rtol=1e-4, atol=1e-5)


def test_with_all_experts_running_a_lost_one_counts_nothing():
    model = build("mixtral")
    families.set_per_token(model, 4)
    with moe.without(model, 1), families.Routing(model) as recorded, torch.no_grad():
        model(input_ids=torch.tensor([[3, 4, 5]]))
    assert (recorded.weights[0][recorded.indices[0] == 1] == 0).all()


def test_numbers_of_experts_are_restored():
    model = build("granite")
    assert moe.counts(model) == [1, 3, 4]
    with moe.running(model, 3):
        assert {part.router.top_k for part in families.parts(model)} == {3}
    assert {part.router.top_k for part in families.parts(model)} == {2}
    assert model.config.num_experts_per_tok == 2


def test_the_whole_on_an_moe_and_on_its_parent(model, source):
    texts = suite.texts(source)
    assert list(texts) == ["plain", "typos", "capitals", "shakespeare", "bible", "tweet"]
    made = build("granite")
    whole = moe.run(made, TOK, texts, 4, 100, 0)
    rows = {(task, metric): (estimate, chance) for task, metric, estimate, chance in whole.rows}
    drift, floor = rows["shift/capitals", "drift"]
    assert 0 <= drift.low <= drift.value <= 1
    assert floor < drift.value
    assert ("shift/plain", "drift") not in rows
    assert len(whole.details["experts"]) == 4
    assert rows["stress/expert", "rise_worst"][0].value == pytest.approx(
        max(whole.details["experts"]), abs=1e-6
    )
    assert rows["stress/expert", "rise_mean"][0].value == pytest.approx(
        np.mean(whole.details["experts"]), abs=1e-6
    )
    assert sorted(whole.details["per_token"]) == ["1", "3", "4"]
    with moe.running(made, 1):
        one = moe.measure(made, TOK, texts["plain"], 4)
    own = whole.groups["plain"]
    rise = (one.nats_N.sum() - own.nats_N.sum()) / math.log(2) / own.bytes_N.sum()
    assert rows["stress/per_token_1", "rise"][0].value == pytest.approx(rise)
    parent = moe.run(model, TOK, texts, 4, 100, 0)
    assert {metric for _, metric, _, _ in parent.rows} == {"bits_per_byte"}
    assert parent.groups["plain"].keys == own.keys
    files.write_json(source.folder / "details.json", whole.details)  # plain numbers only
