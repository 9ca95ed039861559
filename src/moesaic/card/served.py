"""What `mlflow.pyfunc.load_model` of a registered model calls: chat answers by the model folder that the entry names."""

import json
from pathlib import Path
from typing import Any

from moesaic.errors import InputError
from moesaic.flow import files, manifest

NEW_TOKENS = 128


class Answers:
    """A loaded model with `predict`."""

    def __init__(self, folder: Path, adapter: Path | None = None):
        from moesaic.model import load
        from moesaic.model.adapters import attach

        self.model = load.load_model(folder, "registered model")
        if adapter is not None:
            attach.load(self.model, adapter)
        self.tokenizer = load.load_tokenizer(folder)

    def predict(self, frame: Any, params: dict[str, Any] | None = None) -> list[str]:
        """Greedy answers to the column `prompt`, by the chat template where there is one.

        Args:
            frame: pandas.DataFrame. params: {"max_new_tokens": N}.
        """
        import torch

        from moesaic.generate import sample

        new = int((params or {}).get("max_new_tokens", NEW_TOKENS))
        answers = []
        for prompt in frame["prompt"]:
            if self.tokenizer.chat_template:
                ids = torch.tensor([sample.chat_prompt(self.tokenizer, prompt)])
            else:
                ids = self.tokenizer(prompt, return_tensors="pt").input_ids
            out = self.model.generate(ids, max_new_tokens=new, do_sample=False)
            answers.append(self.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
        return answers


def _load_pyfunc(path: str) -> Answers:
    """Called by MLflow with the path of moesaic.json."""
    facts = json.loads(Path(path).read_text(encoding="utf-8"))
    made = Path(facts["folder"]).parent / manifest.NAME
    if not made.is_file() or files.sha256(made) != facts["manifest"]:
        raise InputError(
            f"{facts['folder']}: not there any more, or made again since this version was registered; its weights are gone (versions point to a folder, "
            "they copy nothing): take the newest version"
        )
    return Answers(Path(facts["folder"]), Path(facts["adapter"]) if "adapter" in facts else None)
