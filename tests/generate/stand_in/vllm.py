"""As much of vLLM's interface as the worker uses, over transformers, for machines without vLLM.

STAND_IN_BIAS adds to a logit, as an engine would that reads a checkpoint in another way; STAND_IN_DIES ends the process at a sampling call.
"""

import os
from types import SimpleNamespace

import torch
from transformers import AutoModelForCausalLM

__version__ = "stand-in"
print("vLLM prints to standard output")


class SamplingParams(SimpleNamespace):
    """Keyword arguments, kept."""


class LLM:
    def __init__(self, model, dtype, max_model_len, max_num_seqs, skip_tokenizer_init, enforce_eager):
        assert skip_tokenizer_init
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
        self.longest = max_model_len

    @torch.inference_mode()
    def generate(self, prompts, params, use_tqdm):
        if params[0].max_tokens > 1 and os.environ.get("STAND_IN_DIES"):
            os._exit(3)
        return [
            self.one(prompt["prompt_token_ids"], own) for prompt, own in zip(prompts, params, strict=True)
        ]

    def one(self, ids, own):
        made, stream = [], torch.Generator().manual_seed(getattr(own, "seed", 0))
        stops = getattr(own, "stop_token_ids", [])
        while len(made) < own.max_tokens and not (made and made[-1] in stops):
            logits = self.logits([*ids, *made])[-1]
            if own.temperature == 0:
                made.append(int(logits.argmax()))
                continue
            p = (logits / own.temperature).softmax(0)
            value, order = p.sort(descending=True)
            value[value.cumsum(0) - value >= own.top_p] = 0
            made.append(int(order[torch.multinomial(value, 1, generator=stream)]))
        told = None
        if getattr(own, "prompt_logprobs", None) is not None:
            log_TV = self.logits(ids)[:-1].log_softmax(-1)
            told = [None] + [
                {token: SimpleNamespace(logprob=float(row[token]))}
                for token, row in zip(ids[1:], log_TV, strict=True)
            ]
        reason = "stop" if made[-1] in stops else "length"
        output = SimpleNamespace(token_ids=made, finish_reason=reason)
        return SimpleNamespace(outputs=[output], prompt_logprobs=told, prompt_token_ids=ids)

    def logits(self, ids):
        assert len(ids) <= self.longest
        found = self.model(input_ids=torch.tensor([ids])).logits[0].float()
        found[:, 7] += float(os.environ.get("STAND_IN_BIAS", 0))
        return found
