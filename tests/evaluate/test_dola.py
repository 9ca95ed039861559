"""DoLa against a case by hand, against a plain float64 reference on real models, in generation, and as rows of the suite."""

import math

import numpy as np
import pytest
import torch
from project import tokenizer_of_library
from tiny import tiny_llama

from moesaic.errors import InputError
from moesaic.evaluate import dola, harness, prefix
from moesaic.evaluate.dola import Dola, DolaLM
from moesaic.evaluate.reliability import contrasted

TOK = tokenizer_of_library()


def test_by_hand():
    """Two tokens of three are plausible; candidate 1 is further from the final layer than candidate 0."""
    final = torch.tensor([[0.6, 0.38, 0.02]]).log()
    near, far = torch.tensor([[0.5, 0.4, 0.1]]).log(), torch.tensor([[0.1, 0.2, 0.7]]).log()
    scores, chosen = dola.contrast(final, [near, far], 0.1)
    assert chosen.tolist() == [1]
    ratios = [0.6 / 0.1, 0.38 / 0.2, 0.02 / 0.7]
    wanted = [math.log(ratio / sum(ratios)) for ratio in ratios[:2]]
    assert scores[0, :2].tolist() == pytest.approx(wanted, rel=1e-6)
    assert scores[0, 2] == -1000.0  # 0.02 < 0.1 * 0.6
    # ln 2 for distributions that have nothing in common, 0 for the same.
    apart = dola.divergence(
        torch.tensor([[1.0, 1e-30], [0.5, 0.5]]).log(), torch.tensor([[1e-30, 1.0], [0.5, 0.5]]).log()
    )
    assert apart.tolist() == pytest.approx([math.log(2), 0.0], abs=1e-6)
    every, _ = dola.contrast(final, [near], 1e-3)
    assert (every > -1000).all()


def test_buckets():
    assert dola.bucket("low", 32, tied=False) == tuple(range(0, 16, 2))  # LLaMA-7B, as in the paper
    assert dola.bucket("high", 32, tied=False) == tuple(range(16, 32, 2))
    assert dola.bucket("low", 30, tied=True) == (2, 4, 6, 8, 10, 12, 14)
    assert dola.bucket("high", 30, tied=True) == (16, 18, 20, 22, 24, 26, 28)
    assert dola.bucket("high", 80, tied=False) == tuple(range(60, 80, 2))
    assert dola.bucket("low", 80, tied=False) == tuple(range(0, 20, 2))
    assert dola.bucket("low", 3, tied=True) == (1,)
    assert dola.bucket([5, 1, 5], 6, tied=False) == (1, 5)
    with pytest.raises(InputError, match=r"dola\.layers: 6 is not between 0 and 5"):
        dola.bucket([6], 6, tied=False)


def reference(model, prompt, continuation, how, best=False):
    """One continuation, one token at a time, numpy float64, from the hidden states that transformers returns; or the best first token."""
    with torch.no_grad():
        ids = torch.tensor([prompt + continuation])
        states = model(input_ids=ids, output_hidden_states=True).hidden_states
        head = model.get_output_embeddings().weight.double().numpy()
        scale = getattr(model.config, "logits_scaling", 1.0)
        early = {}
        for layer in how.layers:
            state = model.base_model.norm(states[layer]) if how.norm else states[layer]
            early[layer] = state[0].double().numpy() @ head.T / scale
        final = states[-1][0].double().numpy() @ head.T / scale

    def softmax(values):
        weights = np.exp(values - values.max())
        return weights / weights.sum()

    total, greedy, picked = 0.0, True, []
    for i, token in enumerate(continuation):
        at = len(prompt) - 1 + i
        p = softmax(final[at])
        found = []
        for layer in how.layers:
            q = softmax(early[layer][at])
            m = (p + q) / 2
            found.append(0.5 * (np.sum(p * np.log(p / m)) + np.sum(q * np.log(q / m))))
        picked.append(how.layers[int(np.argmax(found))])
        scores = np.log(p) - np.log(softmax(early[picked[-1]][at]))
        scores = np.log(softmax(scores))
        scores[p < how.alpha * p.max()] = -1000.0
        total += scores[token]
        greedy &= bool(scores[token] >= scores.max())
        if best:
            return int(scores.argmax())
    return total, greedy, picked


def mixtral():
    import transformers

    torch.manual_seed(1)
    return transformers.MixtralForCausalLM(
        transformers.MixtralConfig(
            vocab_size=512, hidden_size=48, intermediate_size=32, num_hidden_layers=4, num_attention_heads=6,
            num_key_value_heads=2, max_position_embeddings=256, num_experts_per_tok=2, num_local_experts=4,
            sliding_window=None, initializer_range=0.2, bos_token_id=1, eos_token_id=2, pad_token_id=2,
        )
    ).eval()  # fmt: skip


@pytest.mark.parametrize("kind", ["dense", "moe"])
@pytest.mark.parametrize("norm", [False, True])
def test_likelihoods_against_the_reference(kind, norm):
    model = tiny_llama(num_hidden_layers=6) if kind == "dense" else mixtral()
    how = Dola((1, 2, 3), alpha=0.05, norm=norm)
    lm = DolaLM(model, TOK, 3, how)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 512, n).tolist() for n in (9, 4, 17)]
    requests = [(("", ""), prompt, rng.integers(3, 512, n).tolist()) for prompt in prompts for n in (1, 3, 2)]
    # The first choice of each prompt is what greedy decoding with DoLa would say.
    for i in range(0, len(requests), 3):
        text, prompt, _ = requests[i]
        requests[i] = (text, prompt, [reference(model, prompt, [3], how, best=True)])
    found = lm._loglikelihood_tokens(requests)
    wanted = [reference(model, prompt, list(rest), how) for _, prompt, rest in requests]
    assert [score for score, _ in found] == pytest.approx([total for total, _, _ in wanted], rel=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy, _ in wanted]
    assert [greedy for _, greedy in found][::3] == [True] * 3
    if kind == "dense":
        assert (
            len({layer for *_, picked in wanted for layer in picked}) > 1
        )  # the choice of the layer matters
    assert any(score < -900 for score, _ in found)
    assert any(score > -900 for score, _ in found)
    plain = prefix.SharedPrefixLM(model, TOK, 3)._loglikelihood_tokens(requests)
    assert plain[0][0] != pytest.approx(found[0][0], rel=1e-2)
    assert not model.base_model.layers[1]._forward_pre_hooks  # nothing stays on the model


def test_a_prompt_that_is_too_long_loses_its_beginning():
    model = tiny_llama(num_hidden_layers=4, max_position_embeddings=32)
    how = Dola((1, 2), alpha=0.002)
    lm = DolaLM(model, TOK, 2, how)
    prompt = np.random.default_rng(3).integers(3, 512, 50).tolist()
    ((found, _),) = lm._loglikelihood_tokens([(("", ""), prompt, [7, 9])])
    assert found == pytest.approx(reference(model, prompt[-31:], [7, 9], how)[0], rel=1e-4)


def test_generation_takes_the_contrasted_token():
    """Greedy, with the cache, prompts of unequal length in one batch: each token is the best by the reference."""
    model = tiny_llama(num_hidden_layers=5)
    how = Dola((1, 3), alpha=0.05)
    lm = DolaLM(model, TOK, 2, how)
    rng = np.random.default_rng(5)
    prompts = [rng.integers(3, 512, n).tolist() for n in (6, 9)]
    ids = torch.tensor([[2] * (9 - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (9 - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    out = lm._model_generate(ids, 13, ["<never>"], attention_mask=mask, do_sample=False)[:, 9:].tolist()
    plain = (
        prefix.SharedPrefixLM(model, TOK, 2)
        ._model_generate(ids, 13, ["<never>"], attention_mask=mask, do_sample=False)[:, 9:]
        .tolist()
    )
    assert out != plain
    for prompt, said in zip(prompts, out, strict=True):
        for i, token in enumerate(said):
            if token == 2:
                break
            _, greedy, _ = reference(model, prompt + said[:i], [token], how)
            assert greedy


def test_gain_is_paired_and_a_question_is_one_unit():
    def scores(name, values):
        return harness.TaskScores(name, [], {"acc": np.array(values)}, [], False)

    known = {
        f"rel_t_{form}": {"axis": "hallucination", "kind": "truth", "set": "t"} for form in ("mc1", "mc2")
    } | {"rel_other": {"axis": "style", "kind": "styled", "set": "s"}}
    known |= contrasted.facts(known)
    assert sorted(known) == ["rel_other", "rel_t_mc1", "rel_t_mc1_dola", "rel_t_mc2", "rel_t_mc2_dola"]
    found = {
        "rel_t_mc1": scores("rel_t_mc1", [0.0, 1.0, 0.0]),
        "rel_t_mc1_dola": scores("rel_t_mc1_dola", [1.0, 1.0, 0.0]),
        "rel_t_mc2": scores("rel_t_mc2", [0.5, 0.5, 0.5]),
        "rel_t_mc2_dola": scores("rel_t_mc2_dola", [0.5, 0.5, 0.2]),
    }
    gains = {item.task: item.metrics[0] for item in contrasted.gains(found, known, 100, 0)}
    assert gains["rel_t_mc1_dola_gain"].estimate.value == pytest.approx(1 / 3)
    assert gains["rel_t_mc2_dola_gain"].estimate.value == pytest.approx(-0.1)
    whole = gains["reliability/dola_gain"].estimate
    assert whole.value == pytest.approx((1 / 3 - 0.1) / 2)
    assert whole.n == 3
    assert whole.low < whole.value < whole.high
