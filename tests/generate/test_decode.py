"""Decoding: against transformers' own, and the same answer whatever else is in the batch."""

import collections

import pytest
import torch
from asking import Words
from tiny import VOCABULARY, tiny_llama, tiny_moe

from moesaic.errors import InputError
from moesaic.generate import sample
from moesaic.generate.decode import Decoding, choose, decode, uniform

GREEDY = Decoding(12, temperature=0)


@pytest.fixture(scope="module", params=["dense", "moe"])
def model(request, tmp_path_factory):
    if request.param == "dense":
        return tiny_llama()
    return tiny_moe(tmp_path_factory.mktemp("moe"), shared=32).model.eval()


def prompts(count=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 15, (count,), generator=generator).tolist()
    return [torch.randint(3, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def one_by_one(model, asked, how, ends, seeds=None):
    seeds = seeds or [[0]] * len(asked)
    return [decode(model, [prompt], [seed], how, ends)[0] for prompt, seed in zip(asked, seeds, strict=True)]


def test_greedy_in_a_batch_equals_one_by_one_and_transformers(model):
    asked = prompts()
    together = decode(model, asked, [[0]] * len(asked), GREEDY, {2})
    assert together == one_by_one(model, asked, GREEDY, {2})
    for prompt, (answer,) in zip(asked, together, strict=True):
        out = model.generate(
            torch.tensor([prompt]), max_new_tokens=12, do_sample=False, pad_token_id=2, eos_token_id=2
        )
        assert answer.ids == out[0, len(prompt) :].tolist()


def test_padding_on_the_left_changes_no_logit(model):
    """One step of decoding a short prompt beside a long one: same logits to rounding."""
    short, long = prompts(2)[0][:3], prompts(2)[1] * 3
    seen = []
    handle = model.register_forward_hook(lambda _m, _i, out: seen.append(out.logits[:, -1].clone()))
    try:
        decode(model, [short], [[0]], Decoding(3, 0), set())
        alone, seen = seen, []
        handle.remove()
        handle = model.register_forward_hook(lambda _m, _i, out: seen.append(out.logits[:, -1].clone()))
        decode(model, [short, long], [[0], [0]], Decoding(3, 0), set())
    finally:
        handle.remove()
    assert len(alone) == len(seen) == 3
    for one, two in zip(alone, seen, strict=True):
        assert torch.allclose(one[0], two[0], atol=1e-4)


def test_sampled_answers_depend_on_their_seed_alone(model):
    asked = prompts()
    seeds = [[10 * i, 10 * i + 1, 10 * i + 2] for i in range(len(asked))]
    how = Decoding(10, temperature=0.9, top_p=0.9)
    together = decode(model, asked, seeds, how, {2})
    assert together == one_by_one(model, asked, how, {2}, seeds)
    backwards = decode(model, asked[::-1], [item[::-1] for item in seeds[::-1]], how, {2})
    assert [item[::-1] for item in backwards[::-1]] == together
    assert len({tuple(answer.ids) for answer in together[0]}) > 1, "different seeds give different answers"


def test_an_end_token_ends_its_answer_only(model):
    asked = prompts()
    free = decode(model, asked, [[0]] * len(asked), GREEDY, set())
    end = free[0][0].ids[3]
    stopped = decode(model, asked, [[0]] * len(asked), GREEDY, {end})
    for (whole,), (cut,) in zip(free, stopped, strict=True):
        if end in whole.ids:
            assert cut.ids == whole.ids[: whole.ids.index(end) + 1]
            assert cut.finished
        else:
            assert cut.ids == whole.ids
            assert not cut.finished
    assert stopped[0][0].finished
    assert any(not item.finished for (item,) in stopped), "some answer was to go on"


def test_sampling_follows_the_nucleus_distribution():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    numbers = torch.from_numpy(uniform(7, 20_000))
    drawn = choose(logits.expand(len(numbers), -1), numbers, Decoding(1, 1.0, 0.9))
    share = {token: n / len(numbers) for token, n in collections.Counter(drawn.tolist()).items()}
    assert set(share) == {0, 1, 2}, "the token outside of the nucleus is never drawn"
    for token, p in ((0, 0.5 / 0.95), (1, 0.3 / 0.95), (2, 0.15 / 0.95)):
        assert share[token] == pytest.approx(p, abs=0.012)
    hot = choose(logits.expand(len(numbers), -1), numbers, Decoding(1, 2.0, 1.0))
    weight = torch.tensor([0.5, 0.3, 0.15, 0.05]).sqrt()
    for token in range(4):
        assert float((hot == token).double().mean()) == pytest.approx(
            float(weight[token] / weight.sum()), abs=0.012
        )


def test_a_narrow_nucleus_is_greedy():
    logits = torch.randn(50, 30, generator=torch.Generator().manual_seed(0))
    numbers = torch.from_numpy(uniform(1, 50))
    assert torch.equal(choose(logits, numbers, Decoding(1, 1.0, 1e-9)), logits.argmax(1))


def test_a_context_that_is_too_short_is_named(model, tmp_path):
    """Before the first answer, though only the last prompt is too long."""
    with pytest.raises(InputError, match="context of 256"):
        decode(model, [[5] * 250], [[0]], GREEDY, {2})
    prompts = [sample.Prompt(str(i), [5] * (250 if i == 5 else 3)) for i in range(6)]
    plan = sample.Plan(GREEDY, 1, 0, 2, part=2)
    tokenizer = Words()
    for key, words in (
        (
            "preference.rubric",
            r"^preference\.rubric\.new_tokens: a prompt of 250 tokens .*; lower new_tokens$",
        ),
        ("distill.samples", r"^distill\.samples\.new_tokens: .*; lower new_tokens or max_prompt$"),
    ):
        with pytest.raises(InputError, match=words):
            sample.answer(model, tokenizer, "m", prompts, plan, "name", tmp_path, key=key)
    assert not list(tmp_path.iterdir())
