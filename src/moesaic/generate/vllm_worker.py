"""vLLM in a process of its own, which may be of another Python environment; started by engine_vllm.py, and needs nothing of this package.

Reads lines of JSON and answers each with one: first the arguments of vllm.LLM, then {"prompts": [[token]], "params": [arguments of
SamplingParams]}. Ends with its input.
"""

import json
import os
import sys
from typing import Any


def main() -> None:
    """Answer until the input ends."""
    sys.path.pop(0)  # the folder of this file, whose modules may hide others
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints, prints to the log

    def say(reply: dict[str, Any]) -> None:
        out.write(json.dumps(reply) + "\n")
        out.flush()

    arguments = json.loads(sys.stdin.readline())
    try:
        import vllm

        llm = vllm.LLM(**arguments)
    except Exception as error:  # told to the process that asked, which raises it
        say({"error": f"{type(error).__name__}: {error}"})
        raise
    say({"version": vllm.__version__})
    for line in sys.stdin:
        asked = json.loads(line)
        prompts = [{"prompt_token_ids": ids} for ids in asked["prompts"]]
        params = [vllm.SamplingParams(**own) for own in asked["params"]]
        say({"answers": [_told(item) for item in llm.generate(prompts, params, use_tqdm=False)]})


def _told(found: Any) -> dict[str, Any]:
    """Answer and, where asked for, the log-probability of each prompt token but the first."""
    one = found.outputs[0]
    told = {"ids": list(one.token_ids), "finished": one.finish_reason == "stop"}
    if found.prompt_logprobs is not None:
        pairs = list(zip(found.prompt_token_ids, found.prompt_logprobs, strict=True))[1:]
        told["prompt_logp"] = [by_token[token].logprob for token, by_token in pairs]
    return told


if __name__ == "__main__":
    main()
