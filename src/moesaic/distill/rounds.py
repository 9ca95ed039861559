"""Training of distillation on sampled answers: pairs with a preference loss, or the answers' text with a token loss."""

from collections.abc import Mapping
from typing import Any

from moesaic.distill import pairs, sampling, scoring, teachers
from moesaic.distill.students import check_teacher
from moesaic.flow.step import Context
from moesaic.schema.samples import OWN
from moesaic.schema.teaching import PAIR_LOSSES, TEXT_LOSSES
from moesaic.train import pairs as training_pairs
from moesaic.train import stage, streams
from moesaic.train.job import Job
from moesaic.train.objectives import Trainee, Weights
from moesaic.train.streams import TextStream


class AnswerStream(training_pairs.PairStream):
    """Answers as rows of supervised fine-tuning, from records {domain, prompt, ids}."""

    def _row(self, record: Mapping[str, Any]) -> Any:
        return training_pairs.answer_row(record["prompt"], record["ids"])


def job(context: Context) -> tuple[Job, dict[str, Any]]:
    """What the loop trains, and what the manifest says of the round."""
    settings = dict(context.settings["distill"])
    model, _ = sampling.load_student(
        Context(context.settings | {"student": settings["student"]}, context.inputs, context.out, context.work, context.name)
    )  # fmt: skip
    made = _on_pairs if settings["loss"] in PAIR_LOSSES else _on_text
    return made(context, settings, model)


def _on_pairs(context: Context, settings: dict[str, Any], model: Any) -> tuple[Job, dict[str, Any]]:
    seed, options = context.settings["seed"], settings["pairs"]
    steps = [item for name, item in context.inputs.items() if name.startswith("pair-scores-")]
    records = training_pairs.read(steps, scoring.PAIRS, model, context.name)
    train, held = pairs.split(records, settings["validation"], seed)
    training_pairs.set_steps(settings, len(train))
    if options["corpus"]:
        tokens = context.inputs["tokens"]
        streams.check_vocabulary(tokens, model, context.name)
        data, validation = (
            pairs.CorpusStream(part, TextStream(tokens, side, context.settings["held_out"]), seed)
            for part, side in ((train, "train"), (held, "validation"))
        )
    else:
        data, validation = (pairs.SampledStream(part) for part in (train, held))  # type: ignore[assignment]
    weights = Weights(settings["balance"], settings["z_loss"], router=settings["router"])
    refresh = settings["loss"] == "dpkd-guarded" and not context.settings["last"]
    found = Job(
        context=context,
        settings=settings,
        trainee=pairs.PairStudent(model, weights, settings["loss"], options),
        mixture=stage.mixture(context, settings, data),
        train=data,
        validation=validation,
        tokenizer_from=context.inputs["student"].folder / "model",
        collate=pairs.collate,
        count=training_pairs.count,
        watch=pairs.Collapse(context.name, options, refresh),
    )
    counts = training_pairs.added([step.metrics["counts"] for step in steps])
    return found, {"train": len(train), "validation": len(held), "counts": counts}


def _on_text(context: Context, settings: dict[str, Any], model: Any) -> tuple[Job, dict[str, Any]]:
    records, counts, own = [], {}, settings["samples"]["text"]
    for kind, ending in (("teacher", ""), ("student", OWN)):
        if own not in (kind, "both"):
            continue
        for record in scoring.answers(context.inputs, kind):
            one = {"question": record["id"], "domain": record["source"] + ending, "prompt": record["prompt"]}
            records += [
                one | {"id": f"{record['id']}#{i}{ending}", "ids": answer["ids"]}
                for i, answer in enumerate(record["answers"])
            ]
        parts = [item for name, item in context.inputs.items() if name.startswith(f"{kind}-text-")]
        for item in parts:
            streams.check_vocabulary(item, model, context.name)
        counts[kind] = training_pairs.added([item.metrics["counts"] for item in parts])
    train, held = pairs.split(
        training_pairs.ordered(records), settings["validation"], context.settings["seed"]
    )
    training_pairs.set_steps(settings, len(train))
    data, validation = AnswerStream(train), AnswerStream(held)
    settings["student_text"] = sorted(name for name in data.sizes if own != "teacher" and name.endswith(OWN))
    teacher = None
    if settings["loss"] not in TEXT_LOSSES:
        taught = stage.load_stage_model(context.inputs["teacher-model"])
        check_teacher(taught, model)
        teacher = teachers.Teacher(taught, settings["teacher_experts"], settings["teacher_scale"])
    found = Job(
        context=context,
        settings=settings,
        trainee=Trainee(model, stage.weights(settings, 1.0 - settings["language_model"]), teacher),
        mixture=stage.mixture(context, settings, data),
        train=data,
        validation=validation,
        tokenizer_from=context.inputs["student"].folder / "model",
    )
    return found, {"train": len(train), "validation": len(held), "counts": counts}
