"""lm-eval's Hugging Face model, but the choices of one question share its prompt: one pass over prompt + all choices.

A question with four choices costs prompt + 4 choices tokens instead of 4 x (prompt + choice). The choices follow each other in one
sequence; a mask lets each see the prompt and itself only, and each continues the prompt's positions, so the numbers are those of
separate passes (tests/evaluate/test_harness.py compares with lm-eval's own).

Shapes: B packed sequences, L their longest length, N target tokens, D model width.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from moesaic.data import chat_template
from moesaic.evaluate.likelihood import target_nats
from moesaic.flow.progress import Progress
from moesaic.generate.decode import end_tokens

Request = tuple[tuple[str, str], list[int], list[int]]
"""(prompt and continuation as text, prompt ids, continuation ids), as lm-eval hands them over."""
Predict = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


log = logging.getLogger("moesaic.evaluate")
PACKED = 2048
"""Tokens up to which the continuations of one prompt are put into one sequence."""


@dataclass(frozen=True)
class Packed:
    """Some continuations of one prompt."""

    prompt: list[int]
    continuations: list[list[int]]
    numbers: list[int]
    """Which requests these are."""

    @property
    def length(self) -> int:
        """Tokens in the sequence; the last token of a continuation is predicted, never read."""
        return len(self.prompt) + sum(len(item) - 1 for item in self.continuations)


class SharedPrefixLM(HFLM):
    """For lm_eval.evaluate; quiet, and shows its progress in lines."""

    def __init__(self, model: Any, tokenizer: Any, batch: int, name: str = "tasks", chat: bool = False):
        """Args: chat: prompts come from the chat template, which writes a first token of its own where there is one: as in tuning and sampling."""
        head = model.get_output_embeddings().weight
        super().__init__(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=batch,
            backend="causal",
            add_bos_token=False if chat else None,
        )
        # lm-eval ties weights anew, which gives a model that has put its image words away (vocabulary.text_only) all of them back
        model.get_output_embeddings().weight = head
        self.progress_name = name

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        # As in tuning and sampling: a template that writes today's date writes one day's.
        self.chat_template_args["chat_template"] = chat_template.fixed(self.tokenizer)
        text: str = super().apply_chat_template(chat_history, add_generation_prompt)
        return text

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> Any:
        return super().loglikelihood_rolling(requests, disable_tqdm=True)

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
        return super().generate_until(requests, disable_tqdm=True)

    def _model_generate(self, context: Any, max_length: int, stop: list[str], **kwargs: Any) -> Tensor:
        # An answer ends, as in samples and instructions, where the chat template ends a turn too. From there on is padding, which is not decoded.
        ends = sorted(end_tokens(self.model, self.tokenizer))
        found_BT: Tensor = super()._model_generate(context, max_length, stop, eos_token_id=ends, **kwargs)
        said_BT = found_BT[:, context.shape[1] :]
        ended_BT = torch.isin(said_BT, torch.tensor(ends, device=said_BT.device)).cumsum(1) > 0
        said_BT.masked_fill_(ended_BT, self.tokenizer.pad_token_id)
        return found_BT

    @torch.inference_mode()
    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = True, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        # Only these attention kernels take a mask per pair of tokens.
        if self.model.config._attn_implementation not in ("sdpa", "eager"):
            return super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)
        answers: dict[int, tuple[float, bool]] = {}
        long = [
            i
            for i, (_, prompt, continuation) in enumerate(requests)
            if len(prompt) + len(continuation) > self.max_length + 1
        ]
        if long:  # lm-eval cuts these on the left
            log.warning(
                "%s: %d of %d prompts are longer than the context of %d tokens and lose their beginning (few-shot examples first)",
                self.progress_name,
                len(long),
                len(requests),
                self.max_length,
            )
            found = super()._loglikelihood_tokens(
                [requests[i] for i in long], disable_tqdm=True, override_bs=override_bs
            )
            answers.update(zip(long, found, strict=True))
        packed = sorted(
            pack(requests, self._longest(requests), set(long)), key=lambda item: (-item.length, item.numbers)
        )
        batch = int(override_bs or self.batch_size)
        progress = Progress(self.progress_name, len(requests), "continuations", start=len(long))
        for start in range(0, len(packed), batch):
            group = packed[start : start + batch]
            answers.update(self.score(group))
            progress.update(sum(len(item.numbers) for item in group))
        return [answers[i] for i in range(len(requests))]

    def log_likelihoods(self, requests: list[Request]) -> list[float]:
        """Of each continuation in nats, without a line of progress: for many small calls."""
        answers: dict[int, tuple[float, bool]] = {}
        packed = list(pack(requests, self._longest(requests), set()))
        with torch.inference_mode():
            for start in range(0, len(packed), int(self.batch_size)):
                answers.update(self.score(packed[start : start + int(self.batch_size)]))
        return [answers[i][0] for i in range(len(requests))]

    def _longest(self, requests: list[Request]) -> int:
        """Tokens of a sequence: the mask of a pair of tokens grows with its square, and there are contexts of 131,072."""
        single = max((len(prompt) + len(found) for _, prompt, found in requests), default=0)
        return min(self.max_length, max(single, PACKED))

    def score(self, group: list[Packed]) -> dict[int, tuple[float, bool]]:
        """Log-likelihoods of one batch; overridden where tokens are scored otherwise (dola.py)."""
        return score(self.model, group)


def pack(requests: list[Request], longest: int, leave_out: set[int]) -> Iterator[Packed]:
    """Join requests with the same prompt, up to `longest` tokens in a sequence."""
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for i, (_, prompt, _) in enumerate(requests):
        if i not in leave_out:
            by_prompt.setdefault(tuple(prompt), []).append(i)
    for prompt_ids, numbers in by_prompt.items():
        current = Packed(list(prompt_ids), [], [])
        for i in numbers:
            continuation = requests[i][2]
            if current.numbers and current.length + len(continuation) - 1 > longest:
                yield current
                current = Packed(list(prompt_ids), [], [])
            current.continuations.append(continuation)
            current.numbers.append(i)
        yield current


def logits(model: Any, hidden_ND: Tensor) -> Tensor:
    """The model's logits of some states [N, V], float32."""
    found_NV: Tensor = model.get_output_embeddings()(hidden_ND).float()
    scale = float(getattr(model.config, "logits_scaling", 1.0))
    return found_NV / scale if scale != 1.0 else found_NV


def _mask(branch_BL: Tensor, dtype: torch.dtype) -> Tensor:
    """What each token sees, to be added to the attention's scores [B, 1, L, L]: what stands before it in the prompt and in its own continuation."""
    longest = branch_BL.shape[1]
    mask_BLL = torch.zeros(len(branch_BL), longest, longest, dtype=dtype)
    causal_LL = torch.ones(longest, longest, dtype=torch.bool).tril()
    # one after the other: a batch's comparisons would be several times as large
    for mask_LL, branch_L in zip(mask_BLL, branch_BL, strict=True):
        seen_LL = causal_LL & ((branch_L[None] == 0) | (branch_L[None] == branch_L[:, None]))
        mask_LL.masked_fill_(~seen_LL, torch.finfo(dtype).min)
    return mask_BLL[:, None]


def score(model: Any, group: list[Packed], predict: Predict | None = None) -> dict[int, tuple[float, bool]]:
    """Log-likelihood (nats) of each continuation, and whether greedy decoding would give exactly it. One forward pass.

    Args:
        predict: (all final states [B * L, D], rows that predict [N], target tokens [N]) -> nats of the targets and whether they are the
            likeliest, both [N]; None: by the model's own distribution.
    """
    longest = max(item.length for item in group)
    ids_BL = torch.zeros(len(group), longest, dtype=torch.long)
    positions_BL = torch.zeros(len(group), longest, dtype=torch.long)
    branch_BL = torch.full((len(group), longest), -1)  # 0 prompt, 1.. continuations, -1 padding
    rows: list[int] = []
    targets: list[int] = []
    spans: list[tuple[int, int]] = []
    for b, item in enumerate(group):
        end = len(item.prompt)
        ids_BL[b, :end] = torch.tensor(item.prompt)
        positions_BL[b, :end] = torch.arange(end)
        branch_BL[b, :end] = 0
        for branch, (number, continuation) in enumerate(
            zip(item.numbers, item.continuations, strict=True), 1
        ):
            inputs = continuation[:-1]
            where = slice(end, end + len(inputs))
            ids_BL[b, where] = torch.tensor(inputs, dtype=torch.long)
            positions_BL[b, where] = len(item.prompt) + torch.arange(len(inputs))
            branch_BL[b, where] = branch
            # The prompt's last token predicts the first token of every continuation.
            rows += [
                b * longest + len(item.prompt) - 1,
                *range(b * longest + where.start, b * longest + where.stop),
            ]
            targets += continuation
            spans.append((number, len(continuation)))
            end = where.stop
    device = model.device
    hidden_BLD = model.base_model(
        input_ids=ids_BL.to(device),
        attention_mask=_mask(branch_BL, model.dtype).to(device),
        position_ids=positions_BL.to(device),
        use_cache=False,
    ).last_hidden_state
    rows_N, targets_N = (torch.tensor(numbers, device=device) for numbers in (rows, targets))
    states_ND = hidden_BLD.flatten(0, 1)
    nats_N, best_N = (
        predict(states_ND, rows_N, targets_N) if predict else target_nats(model, states_ND[rows_N], targets_N)
    )
    nats_N, best_N = nats_N.double().cpu(), best_N.cpu()
    found, start = {}, 0
    for number, size in spans:
        found[number] = (-float(nats_N[start : start + size].sum()), bool(best_N[start : start + size].all()))
        start += size
    return found
