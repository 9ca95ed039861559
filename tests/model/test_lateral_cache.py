"""Lateralization LoRA with a cache: decoding, generation, beams, caches that do not fit (L3 of its acceptance list)."""

import copy

import pytest
import torch
from lateral_model import TOKENS, image, noisy, text, with_adapter
from tiny import tiny_llama

from moesaic.errors import InputError


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
@pytest.mark.parametrize(("kernel", "size"), [("plain", 3), ("depthwise", 5), ("analytic", 5), ("mosaic", 3)])
def test_l3_cached_decoding_equals_the_full_pass(kernel, size, dtype, most):
    """Two images of different grids, image first, image last and cut off, left padding; token by token and in pieces.

    In float32 within 1e-4; in float64 within 1e-10, so what is left in float32 is rounding alone.
    """
    model = noisy(with_adapter(kernel=kernel, size=size), scale=0.1).to(dtype)
    rows = [
        [*image(471), *text(4), *image(473, 1), *text(1)],
        [*text(6), *image(472, 2), *text(2), *image(471, 3, cells=7)],
    ]
    longest = max(map(len, rows))
    ids = torch.tensor([[2] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        full = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
        for pieces in ([1] * longest, [7, 3, 1, 9, longest - 20]):
            cache, found, start = None, [], 0
            for step in pieces:
                now = slice(start, start + step)
                out = model(
                    input_ids=ids[:, now], attention_mask=mask[:, : start + step], position_ids=positions[:, now],
                    past_key_values=cache, use_cache=True,
                )  # fmt: skip
                cache, start = out.past_key_values, start + step
                found.append(out.logits)
            real = mask.bool()
            assert float((torch.cat(found, 1)[real] - full[real]).abs().max()) <= most


def test_l3_generation_with_and_without_a_cache():
    """transformers' own generate, greedy and with beams (which reorders the cache), from within an image."""
    model = noisy(with_adapter(size=5), scale=0.5)
    model.generation_config.eos_token_id = None
    prompt = torch.tensor([[*text(4), *image(474, cells=20)]])
    mask = torch.zeros(512)
    mask[: TOKENS.first] = mask[TOKENS.first + 64 :] = -torch.inf  # images only

    def only_codes(_ids, scores):
        return scores + mask

    for beams in (1, 3):
        found = [
            model.generate(
                prompt, max_new_tokens=20, do_sample=False, num_beams=beams, use_cache=cached,
                logits_processor=[only_codes], pad_token_id=2,
            )
            for cached in (True, False)
        ]  # fmt: skip
        assert torch.equal(found[0], found[1]), beams


def test_l3_a_cache_that_is_not_ours_is_refused():
    model = noisy(with_adapter())
    ids = torch.tensor([[*text(4), *image(471, cells=6)]])
    with torch.no_grad():
        strange = tiny_llama()(input_ids=ids, use_cache=True).past_key_values
        with pytest.raises(InputError, match="not filled through the adapter"):
            model(input_ids=ids[:, -1:], past_key_values=strange)
        cut = model(input_ids=ids, use_cache=True).past_key_values
        copied = copy.deepcopy(cut)
        expected = model(input_ids=ids[:, -1:], past_key_values=cut).logits
        assert torch.equal(model(input_ids=ids[:, -1:], past_key_values=copied).logits, expected)
        cut.crop(-5)
        with pytest.raises(InputError, match="or was cut"):
            model(input_ids=ids[:, -1:], past_key_values=cut)
    with pytest.raises(InputError, match="call the model with input_ids"):
        model(inputs_embeds=torch.randn(1, 4, 48))
