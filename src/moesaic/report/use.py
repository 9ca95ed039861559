"""How to load and use the best model of a run."""

from collections.abc import Sequence
from html import escape
from typing import Any

from moesaic.model.adapters import beside
from moesaic.report import tables
from moesaic.report.gather import Gathered


def html(run: Gathered, found: Sequence[dict[str, Any]]) -> str:
    """The last section: code for the best model of the run."""
    row = tables.best(found, run.stages) or found[-1]
    path = row["model"]
    load = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'folder = "{path}"  # {row["label"]}, {row["architecture"]}\n'
        "model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)\n"
        'inputs = tokenizer("The capital of France is", return_tensors="pt")\n'
        "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=20)[0]))"
    )
    plain = True
    point = next(point for point in run.points if point.label == row["label"])
    if "share" in point.model.metrics.get("depth", {}):
        plain = False
        load = load.replace(
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n",
            "from pathlib import Path\n\nfrom transformers import AutoTokenizer\n\nfrom moesaic.model import depth\n",
        ).replace("AutoModelForCausalLM.from_pretrained(folder)", "depth.load(Path(folder))")
    if beside.needed(point.model):
        return _adapted(path, load)
    shell = (
        f"lm_eval --model hf --model_args pretrained={path} --tasks piqa,hellaswag\n"
        f"vllm serve {path}\n"
        "make ui        # MLflow with all runs on http://127.0.0.1:5000\n"
        "moesaic summary # the first table, in the terminal"
    )
    if not plain:
        shell = (
            f"moesaic fold {path} OUT   # a standard model again, where every layer always or never runs\n"
            + "\n".join(shell.split("\n")[2:])
        )
        return (
            "<p>No class of transformers leaves FFNs out, so this model needs Moesaic to load.</p>\n"
            f"<pre><code>{escape(load)}</code></pre>\n<pre><code>{escape(shell)}</code></pre>\n"
        )
    return (
        f"<p>The models are plain transformers checkpoints; no code of Moesaic is needed to load them.</p>\n"
        f"<pre><code>{escape(load)}</code></pre>\n<pre><code>{escape(shell)}</code></pre>\n"
    )


def _adapted(path: str, load: str) -> str:
    """A model that is only whole with the adapter beside it."""
    adapter = f"{path.removesuffix('/model')}/{beside.FOLDER}"
    load = load.replace(
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n",
        "from pathlib import Path\n\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\nfrom moesaic.model.adapters import attach\n",
    ).replace("\ninputs =", f'\nattach.load(model, Path("{adapter}"))\ninputs =')
    return (
        "<p>The model alone is a plain transformers checkpoint without what was tuned; the adapter beside it needs Moesaic "
        "(plain peft loads its half for text).</p>\n"
        f"<pre><code>{escape(load)}</code></pre>\n"
    )
