"""Sampling by vLLM, for large models on a GPU: a process of its own (vllm_worker.py), so that vLLM may live in another environment.

vLLM pins its own torch and transformers. Its Python is $MOESAIC_VLLM_PYTHON, or this one where vLLM is installed beside us. Before it samples, its
log-probabilities are compared with those of transformers: an engine that reads a checkpoint in another way would else sample from another model.
"""

import importlib.util
import itertools
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from moesaic.errors import InputError, Interrupted
from moesaic.evaluate.likelihood import target_nats
from moesaic.flow import signals
from moesaic.generate.decode import Answer, Decoding, precision

log = logging.getLogger("moesaic.generate")
PYTHON = "MOESAIC_VLLM_PYTHON"
COMPARED = 8
"""Prompts on which both engines are compared."""
AGREE = 0.1
"""Largest mean difference of a token's log-probability, nats: bfloat16 stays an order below, a misread model is far above."""


class Vllm:
    """Starts vLLM with the first call; see engines.Engine."""

    whole = True

    def __init__(self, model: Any, folder: Path | None, longest: int, new: int, batch: int) -> None:
        self._model, self._folder = model, folder
        self._length, self._batch = longest + new, batch
        self._process: subprocess.Popen[str] | None = None
        self._place: tempfile.TemporaryDirectory[str] | None = None
        self._home: torch.device | None = None
        """Where the model was before it made room."""

    def decode(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], how: Decoding, ends: set[int]
    ) -> list[list[Answer]]:
        """As decode.decode, but the random numbers are vLLM's: an answer is fixed by its seed on one machine and version of it."""
        if self._process is None:
            self._start(prompts)
        asked, params = [], []
        for ids, own in zip(prompts, seeds, strict=True):
            for seed in own:
                asked.append(list(ids))
                params.append({
                    "temperature": how.temperature, "top_p": how.top_p, "max_tokens": how.new_tokens, "seed": seed % 2**63,
                    "stop_token_ids": sorted(ends), "detokenize": False,
                })  # fmt: skip
        made = iter([Answer(item["ids"], item["finished"]) for item in self._ask(asked, params)])
        return [list(itertools.islice(made, len(own))) for own in seeds]

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()
            self._process = None
        if self._home is not None:
            self._model.to(self._home)
        if self._place is not None:
            self._place.cleanup()

    def _start(self, prompts: Sequence[Sequence[int]]) -> None:
        python = interpreter()
        sample = sorted((ids for ids in prompts if len(ids) > 1), key=len)[:COMPARED]
        expected = [_log_probabilities(self._model, ids) for ids in sample]
        where = self._home = self._model.device
        self._model.to("cpu")  # the device's memory is vLLM's now
        if where.type == "cuda":
            torch.cuda.empty_cache()
        folder = self._checkpoint()
        environment = dict(os.environ)
        if python != sys.executable:
            environment.pop("PYTHONPATH", None)
        worker = Path(__file__).with_name("vllm_worker.py")
        self._process = subprocess.Popen(
            [python, str(worker)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        bf16 = where.type == "cuda" and torch.cuda.is_bf16_supported()
        arguments = {
            "model": str(folder), "dtype": "bfloat16" if bf16 else "float32", "max_model_len": self._length, "max_num_seqs": self._batch,
            "skip_tokenizer_init": True, "enforce_eager": where.type == "cpu",
        }  # fmt: skip
        reply = self._exchange(arguments)
        if "error" in reply:
            self.close()
            raise InputError(
                f"engine: vllm cannot run {folder} ({reply['error'].splitlines()[0]}); set engine: transformers"
            )
        log.info("answers by vLLM %s (%s)", reply["version"], arguments["dtype"])
        self._compare(sample, expected, folder)

    def _checkpoint(self) -> Path:
        """Where vLLM reads the model: its own folder, or a temporary one for a model that is in memory only, or lacks what vLLM asks for."""
        from moesaic.model import depth, for_vllm

        folder = self._folder
        if folder is None or for_vllm.missing(folder):
            self._place = tempfile.TemporaryDirectory(prefix="moesaic-vllm-")
        if folder is None:
            assert self._place is not None
            folder = Path(self._place.name) / "model"
            depth.save(self._model, folder)
        if for_vllm.missing(folder):
            assert self._place is not None
            for_vllm.write(folder, Path(self._place.name) / "whole", link=True)
            folder = Path(self._place.name) / "whole"
        return folder

    def _compare(self, sample: Sequence[Sequence[int]], expected: list[torch.Tensor], folder: Path) -> None:
        params = [{"temperature": 0, "max_tokens": 1, "prompt_logprobs": 0, "detokenize": False}] * len(
            sample
        )
        found = [
            torch.tensor(item["prompt_logp"]) for item in self._ask([list(ids) for ids in sample], params)
        ]
        if not found:
            return
        difference = float((torch.cat(found) - torch.cat(expected)).abs().mean())
        log.info("vLLM and transformers differ by %.2g nats a token on %d prompts", difference, len(sample))
        if not difference <= AGREE:  # not a number, too
            self.close()
            raise InputError(
                f"engine: vllm reads {folder} in another way than transformers: the log-probabilities of {sum(map(len, found))} prompt tokens differ "
                f"by {difference:.3g} nats on average (at most {AGREE}); set engine: transformers"
            )

    def _ask(self, prompts: list[list[int]], params: list[dict[str, Any]]) -> list[dict[str, Any]]:
        answers: list[dict[str, Any]] = self._exchange({"prompts": prompts, "params": params})["answers"]
        return answers

    def _exchange(self, line: dict[str, Any]) -> dict[str, Any]:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        reply = ""
        try:
            process.stdin.write(json.dumps(line) + "\n")
            process.stdin.flush()
            reply = process.stdout.readline()
        except BrokenPipeError:
            log.debug("vLLM's process has ended")
        if reply:
            found: dict[str, Any] = json.loads(reply)
            return found
        code = process.wait()
        self._process = None
        if signals.stop_requested():  # the signal reached it, too
            raise Interrupted("vLLM was asked to stop; the answers saved so far are kept, run again to go on")
        raise InputError(
            f"engine: vllm ended with code {code}; its last lines are above. Run again to go on, or set engine: transformers"
        )


def interpreter() -> str:
    """The Python that has vLLM.

    Raises:
        InputError: none is known.
    """
    given = os.environ.get(PYTHON)
    if given:
        if not Path(given).is_file():
            raise InputError(f"${PYTHON}: {given} is no file; set it to the python of vLLM's environment")
        return given
    if importlib.util.find_spec("vllm") is not None:
        return sys.executable
    raise InputError(
        f"engine: vllm is not installed; give it an environment of its own (it pins its own torch) and set {PYTHON} to that environment's python: "
        "docs/howto/vllm.md"
    )


@torch.inference_mode()
def _log_probabilities(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """Of each token but the first, [T - 1] on the CPU."""
    ids_1T = torch.tensor([list(ids)], device=model.device)
    with precision(model.device):
        hidden_1TD = model.base_model(input_ids=ids_1T[:, :-1], use_cache=False).last_hidden_state
        nats_N, _ = target_nats(model, hidden_1TD[0], ids_1T[0, 1:])
    return -nats_N.cpu()
