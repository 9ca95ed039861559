"""The `moesaic` command: one subcommand per step, usable without Snakemake.

Examples:
    moesaic init my-project
    moesaic check config/config.yaml
    moesaic pretrain --config config/config.yaml --variant activation
    moesaic evaluate --config config/config.yaml --stage dense --set evaluate.items=100
    moesaic plan config/recipes/timo.yaml --gpu H100 --gpus 8 --price 2.5
    moesaic compare results/activation/evaluate/pretrain results/dense/evaluate
"""

import argparse
import errno
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moesaic.errors import InputError, Interrupted
from moesaic.flow import launch, paths
from moesaic.flow.step import STEPS

SET = "override a key, such as pretrain.steps=100; may be given several times"


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, run, and turn the errors that a user may meet into one line and an exit code."""
    arguments = parser().parse_args(argv)
    _environment()
    _logging(getattr(arguments, "log", None))
    try:
        arguments.call(arguments)
    except InputError as error:
        for line in str(error).splitlines():
            logging.getLogger("moesaic").error("error: %s", line)
        sys.exit(2)
    except Interrupted as error:
        logging.getLogger("moesaic").warning("%s", error)
        sys.exit(Interrupted.EXIT_CODE)
    except launch.RankFailed as error:
        # The ranks have shown their tracebacks.
        logging.getLogger("moesaic").error("error: %s", error)
        sys.exit(1)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            logging.getLogger("moesaic").exception("unexpected error")
            sys.exit(1)
        logging.getLogger("moesaic").error(
            "error: no room left on the disk for %s; free some space and run again, finished steps and checkpoints are kept",
            error.filename or "a file",
        )
        sys.exit(2)
    except Exception:
        # Into the log file too, not to the terminal alone.
        logging.getLogger("moesaic").exception("unexpected error")
        sys.exit(1)


def parser() -> argparse.ArgumentParser:
    """All commands and their arguments; the reference of the documentation is made from it."""
    made = argparse.ArgumentParser(
        prog="moesaic", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = made.add_subparsers(required=True, metavar="COMMAND")
    for step in STEPS.values():
        command = commands.add_parser(step.name, help=f"run the {step.name} step")
        command.add_argument(
            "--config", default="config/config.yaml", help="settings, inputs and folder follow from it"
        )
        command.add_argument("--variant", help="which variant of the configuration")
        command.add_argument(
            "--stage",
            help="evaluate: the stage whose model is evaluated (dense, construct, ...); teacher: the stage that trains on the cache",
        )
        sharded = (*paths.SHARDED, *paths.ROUNDS, "teacher_text", "evaluate_part")
        if step.name in sharded:
            command.add_argument("--round", type=int, help="from 1; the last one when left out")
            command.add_argument("--shard", type=int, default=0, help="from 0 (steps before a training)")
        command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=SET)
        command.add_argument("--log", type=Path, help="also write the log to this file")
        command.add_argument("--threads", type=int, help="CPU threads per rank")
        if step.distributed:
            command.add_argument("--nodes", type=int, default=1, help="of the allocation")
            command.add_argument(
                "--ranks-per-node", type=int, default=1, help="processes per node, usually one per GPU"
            )
        command.set_defaults(call=_run_step, step=step)
    init = commands.add_parser("init", help="lay out a new project, with a profile for the cluster found")
    init.add_argument("folder", type=Path, help="made if it is not there; nothing in it is overwritten")
    init.add_argument("--recipe", help="a published set-up instead of the embedded default, such as timo")
    init.add_argument("--partition", help="of the cluster; otherwise one with GPUs, or the default one")
    init.add_argument("--no-cluster", action="store_true", help="do not ask sinfo")
    init.set_defaults(call=_init)
    check = commands.add_parser("check", help="validate a configuration file")
    check.add_argument("config", help="a YAML file")
    check.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=SET)
    check.set_defaults(call=_check)
    plan = commands.add_parser(
        "plan", help="parameters, memory, tokens, GPU-hours and cost, before anything is submitted"
    )
    plan.add_argument("config", help="a YAML file")
    plan.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=SET)
    plan.add_argument(
        "--gpu", default="H100", help="its kind; an unknown one is answered with the known ones"
    )
    plan.add_argument("--gpus", type=int, default=8, help="GPUs of all nodes together")
    plan.add_argument(
        "--mfu", type=float, default=0.3, help="share of the GPU's peak that you expect to reach"
    )
    plan.add_argument("--price", type=float, help="of a GPU-hour, in any currency")
    plan.set_defaults(call=_plan)
    schema = commands.add_parser("schema", help="write the JSON schema of the configuration")
    schema.add_argument("out", type=Path, help="the file to write")
    schema.set_defaults(call=_schema)
    sync = commands.add_parser(
        "sync", help="replay metrics, parameters and tags of all finished and running steps into MLflow"
    )
    sync.add_argument("--config", default="config/config.yaml", help="of the run")
    sync.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=SET)
    sync.add_argument("--results", type=Path, default=Path("results"), help="folder of the run's results")
    sync.set_defaults(call=_sync)
    summary = commands.add_parser("summary", help="print the stage table of a finished run")
    summary.add_argument("--results", type=Path, default=Path("results"), help="folder of the run's results")
    summary.set_defaults(call=_summary)
    export = commands.add_parser("export", help="copy a stage's model with a model card, to give it away")
    export.add_argument("out", type=Path, help="the folder to write; it must not be there")
    export.add_argument("--config", default="config/config.yaml", help="of the run")
    export.add_argument("--variant", required=True, help="which variant of the configuration")
    export.add_argument("--stage", required=True, help="which of its models")
    export.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=SET)
    export.set_defaults(call=_export)
    compare = commands.add_parser("compare", help="differences of two evaluated models on the same items")
    compare.add_argument("first", type=Path, help="folder of an evaluation, e.g. results/a/evaluate/pretrain")
    compare.add_argument("second", type=Path, help="folder of another one, e.g. results/dense/evaluate")
    compare.add_argument("--resamples", type=int, default=1000, help="of the paired bootstrap")
    compare.set_defaults(call=_compare)
    audit = commands.add_parser("audit", help="what the experts and routers of any MoE checkpoint do on text")
    audit.add_argument("model", type=Path, help="a model folder of a known MoE family")
    audit.add_argument(
        "--tokens", type=Path, default=Path("results/prepare/tokens"), help="packed text of the tokens step"
    )
    audit.add_argument("--blocks", type=int, default=2, help="validation blocks of each domain")
    audit.add_argument("--out", type=Path, help="write every figure as JSON")
    audit.set_defaults(call=_audit)
    merge = commands.add_parser("merge", help="write a split MoE as one dense model again")
    merge.add_argument("model", type=Path, help="a model folder of a known MoE family")
    merge.add_argument("out", type=Path, help="the folder to write")
    merge.add_argument(
        "--factor",
        type=float,
        required=True,
        help="folded into the routed experts at conversion (times-k: experts per token)",
    )
    merge.add_argument(
        "--assignment",
        type=Path,
        help="assignment.parquet of the split: neurons return to the parent's order",
    )
    merge.set_defaults(call=_merge)
    export = commands.add_parser("gguf", help="write a converted MoE as one GGUF file for llama.cpp")
    export.add_argument("model", type=Path)
    export.add_argument("out", type=Path)
    export.add_argument("--dtype", default="f16", choices=["f32", "f16", "bf16", "q8_0"])
    export.set_defaults(call=_gguf)
    fold = commands.add_parser("fold", help="write a model whose layers skip as a standard one again")
    fold.add_argument("model", type=Path, help="a model folder that tune.depth made")
    fold.add_argument("out", type=Path, help="the folder to write")
    fold.add_argument("--approximate", action="store_true", help="round layers that run for some tokens only")
    fold.set_defaults(call=_fold)
    return made


def _load(arguments: argparse.Namespace) -> Any:
    from moesaic import config

    overrides: dict[str, Any] = {}
    for item in arguments.set:
        overrides = config.merge(overrides, config.parse_override(item))
    return config.load(arguments.config, overrides)


def _run_step(arguments: argparse.Namespace) -> None:
    part = paths.Part(arguments.round, arguments.shard) if hasattr(arguments, "round") else None
    plan = paths.plan_step(_load(arguments), arguments.step.name, arguments.variant, arguments.stage, part)
    ranks = launch.Ranks(
        getattr(arguments, "nodes", 1), getattr(arguments, "ranks_per_node", 1), arguments.threads
    )
    launch.run(arguments.step, plan.settings, plan.inputs, plan.out, ranks)


def _init(arguments: argparse.Namespace) -> None:
    from moesaic.project import init

    commands = init.make(arguments.folder, arguments.recipe, arguments.partition, not arguments.no_cluster)
    print("\n".join(commands))


def _check(arguments: argparse.Namespace) -> None:
    loaded = _load(arguments)
    logging.getLogger("moesaic").info(
        "%s is valid: variants %s, stages %s",
        arguments.config,
        ", ".join(loaded.variants),
        ", ".join(loaded.stages),
    )


def _plan(arguments: argparse.Namespace) -> None:
    from moesaic import plan

    machine = plan.Hardware(arguments.gpu, arguments.gpus, arguments.mfu, arguments.price)
    sys.stdout.write(plan.text(plan.make(_load(arguments), machine), machine))


def _export(arguments: argparse.Namespace) -> None:
    from moesaic.card import export

    export.run(_load(arguments), arguments.variant, arguments.stage, arguments.out)


def _compare(arguments: argparse.Namespace) -> None:
    from moesaic.evaluate import compare

    first, second = (folder / "items.parquet" for folder in (arguments.first, arguments.second))
    print(f"{'task':<32} {'metric':<14} {'n':>6} {'difference':>10} {'95 %':>20}")
    for row in compare.table(first, second, arguments.resamples):
        low, high = row["ci_low"], row["ci_high"]
        between = "" if low is None else f"{low:.4f} to {high:.4f}"
        print(f"{row['task']:<32} {row['metric']:<14} {row['n']:>6} {row['value']:>10.4f} {between:>20}")


def _audit(arguments: argparse.Namespace) -> None:
    from moesaic.experts import audit_model
    from moesaic.flow import files

    found = audit_model.run(arguments.model, audit_model.blocks(arguments.tokens, arguments.blocks))
    if arguments.out:
        files.write_json(arguments.out, found)
    print(f"{'layer':>5} {'lift':>8} {'95 %':>18} {'z':>7} {'similarity':>10} {'load CV':>8}")
    for index, item in enumerate(found["layers"]):
        interval = f"{item['lift_low']:.3f} to {item['lift_high']:.3f}"
        print(
            f"{index:>5} {item['lift']:>8.3f} {interval:>18} {item['z']:>7.1f} {item['similarity']:>10.3f} {item['load_cv']:>8.3f}"
        )
    for devices, item in found["routing"]["placement"].items():
        print(
            f"{devices} GPUs: {item['round_robin']:.1%} of the tokens change the GPU, {item['minimum_cut']:.1%} with minimum cut"
        )


def _merge(arguments: argparse.Namespace) -> None:
    from moesaic.experts import merge

    made = merge.run(arguments.model, arguments.out, arguments.factor, arguments.assignment)
    logging.getLogger("moesaic").info(
        "%s: dense, FFN width %d, %d parameters", arguments.out, made["ffn"], made["parameters"]
    )


def _gguf(arguments: argparse.Namespace) -> None:
    from moesaic.model import to_gguf

    made = to_gguf.run(arguments.model, arguments.out, arguments.dtype)
    logging.getLogger("moesaic").info(
        "%s: llama.cpp's %s, %d tensors, %.1f MB",
        arguments.out, made["architecture"], made["tensors"], made["bytes"] / 1e6,
    )  # fmt: skip


def _fold(arguments: argparse.Namespace) -> None:
    from moesaic.flow import files
    from moesaic.model import depth, load

    tokenizer = load.load_tokenizer(arguments.model)
    found = depth.fold.fold(depth.load(arguments.model), arguments.approximate)
    with files.atomic_path(arguments.out) as folder:
        depth.save(found.model, folder)
        tokenizer.save_pretrained(folder)
    logging.getLogger("moesaic").info(
        "%s: %s of %d layers; %s",
        arguments.out,
        found.model.config.architectures[0],
        found.model.config.num_hidden_layers,
        ", ".join(f"{name} {value}" for name, value in found.facts().items()),
    )


def _schema(arguments: argparse.Namespace) -> None:
    from moesaic import config

    arguments.out.write_text(json.dumps(config.json_schema(), indent=1) + "\n", encoding="utf-8")


def _sync(arguments: argparse.Namespace) -> None:
    from moesaic.flow import track

    track.replay(_load(arguments), arguments.results)


def _summary(arguments: argparse.Namespace) -> None:
    from moesaic.report import summary

    sys.stdout.write(summary.text(arguments.results))


def _environment() -> None:
    """Before torch is imported: no spinning OpenMP threads (up to 33x slower on busy cores), no stray telemetry or forks."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # Progress is shown by flow/progress.py, one line at a time; libraries' own bars would garble parallel jobs and log files.
    os.environ.setdefault("TQDM_DISABLE", "1")


def _logging(path: Path | None) -> None:
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(path, encoding="utf-8"))
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
        handlers=handlers,
        force=True,
    )
    for noisy in (
        "httpx",
        "urllib3",
        "datasets",
        "fsspec",
        "filelock",
        "huggingface_hub",
        "lm_eval",
        "alembic",
        "matplotlib",
    ):
        logging.getLogger(noisy).setLevel(logging.WARNING)


if __name__ == "__main__":
    main()
