"""The commands that are no steps: each one's arguments, then what it calls. Imports stand in the calls, so that help is there at once."""

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

SET = "override a key, such as pretrain.steps=100; may be given several times"


def add(commands: Any) -> None:
    """Add them to the parser's subcommands, in the order of the documentation."""
    for one in (
        _add_init,
        _add_check,
        _add_plan,
        _add_schema,
        _add_sync,
        _add_summary,
        _add_export,
        _add_compare,
        _add_audit,
        _add_merge,
        _add_gguf,
        _add_fold,
    ):
        one(commands)


def load(arguments: argparse.Namespace) -> Any:
    """The configuration that --config and --set name."""
    from moesaic import config

    overrides: dict[str, Any] = {}
    for item in arguments.set:
        overrides = config.merge(overrides, config.parse_override(item))
    return config.load(arguments.config, overrides)


def _add_init(commands: Any) -> None:
    parser = commands.add_parser("init", help="lay out a new project, with a profile for the cluster found")
    parser.add_argument("folder", type=Path, help="made if it is not there; nothing in it is overwritten")
    parser.add_argument("--recipe", help="a published set-up instead of the embedded default, such as timo")
    parser.add_argument("--partition", help="of the cluster; otherwise one with GPUs, or the default one")
    parser.add_argument("--no-cluster", action="store_true", help="do not ask sinfo")
    parser.set_defaults(call=_init)


def _init(arguments: argparse.Namespace) -> None:
    from moesaic.project import init

    commands = init.make(arguments.folder, arguments.recipe, arguments.partition, not arguments.no_cluster)
    print("\n".join(commands))


def _add_check(commands: Any) -> None:
    parser = commands.add_parser("check", help="validate a configuration file")
    parser.add_argument("config", help="a YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=SET)
    parser.set_defaults(call=_check)


def _check(arguments: argparse.Namespace) -> None:
    from moesaic.flow import told
    from moesaic.project import extras

    loaded = load(arguments)
    told.check(loaded)
    log = logging.getLogger("moesaic")
    for line in extras.missing(loaded):
        log.warning("%s", line)
    log.info(
        "%s is valid: variants %s, stages %s",
        arguments.config,
        ", ".join(loaded.variants),
        ", ".join(loaded.stages),
    )


def _add_plan(commands: Any) -> None:
    parser = commands.add_parser(
        "plan", help="parameters, memory, tokens, GPU-hours and cost, before anything is submitted"
    )
    parser.add_argument("config", help="a YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=SET)
    parser.add_argument(
        "--gpu", default="H100", help="its kind; an unknown one is answered with the known ones"
    )
    parser.add_argument("--gpus", type=int, default=8, help="GPUs of all nodes together")
    parser.add_argument(
        "--mfu", type=float, default=0.3, help="share of the GPU's peak that you expect to reach"
    )
    parser.add_argument("--price", type=float, help="of a GPU-hour, in any currency")
    parser.set_defaults(call=_plan)


def _plan(arguments: argparse.Namespace) -> None:
    from moesaic import plan, plan_page

    machine = plan.Hardware(arguments.gpu, arguments.gpus, arguments.mfu, arguments.price)
    sys.stdout.write(plan_page.text(plan.make(load(arguments), machine), machine))


def _add_schema(commands: Any) -> None:
    parser = commands.add_parser("schema", help="write the JSON schema of the configuration")
    parser.add_argument("out", type=Path, help="the file to write")
    parser.set_defaults(call=_schema)


def _schema(arguments: argparse.Namespace) -> None:
    from moesaic import config

    arguments.out.write_text(json.dumps(config.json_schema(), indent=1) + "\n", encoding="utf-8")


def _add_sync(commands: Any) -> None:
    parser = commands.add_parser(
        "sync", help="replay metrics, parameters and tags of all finished and running steps into MLflow"
    )
    parser.add_argument("--config", default="config/config.yaml", help="of the run")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=SET)
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the run's results")
    parser.set_defaults(call=_sync)


def _sync(arguments: argparse.Namespace) -> None:
    from moesaic.flow import track

    track.replay(load(arguments), arguments.results)


def _add_summary(commands: Any) -> None:
    parser = commands.add_parser("summary", help="print the stage table of a finished run")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the run's results")
    parser.set_defaults(call=_summary)


def _summary(arguments: argparse.Namespace) -> None:
    from moesaic.report import summary

    sys.stdout.write(summary.text(arguments.results))


def _add_export(commands: Any) -> None:
    parser = commands.add_parser("export", help="copy a stage's model with a model card, to give it away")
    parser.add_argument("out", type=Path, help="the folder to write; it must not be there")
    parser.add_argument("--config", default="config/config.yaml", help="of the run")
    parser.add_argument("--variant", required=True, help="which variant of the configuration")
    parser.add_argument("--stage", required=True, help="which of its models")
    parser.add_argument(
        "--for",
        dest="engine",
        choices=["transformers", "vllm"],
        default="transformers",
        help="vllm: add the tensors that its classes of glm4_moe and qwen2_moe ask for",
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=SET)
    parser.set_defaults(call=_export)


def _export(arguments: argparse.Namespace) -> None:
    from moesaic.card import export

    export.run(load(arguments), arguments.variant, arguments.stage, arguments.out, arguments.engine)


def _add_compare(commands: Any) -> None:
    parser = commands.add_parser("compare", help="differences of two evaluated models on the same items")
    parser.add_argument("first", type=Path, help="folder of an evaluation, e.g. results/a/evaluate/pretrain")
    parser.add_argument("second", type=Path, help="folder of another one, e.g. results/dense/evaluate")
    parser.add_argument("--resamples", type=int, default=1000, help="of the paired bootstrap")
    parser.set_defaults(call=_compare)


def _compare(arguments: argparse.Namespace) -> None:
    from moesaic.evaluate import compare

    first, second = (folder / "items.parquet" for folder in (arguments.first, arguments.second))
    print(f"{'task':<32} {'metric':<14} {'n':>6} {'difference':>10} {'95 %':>20}")
    for row in compare.table(first, second, arguments.resamples):
        low, high = row["ci_low"], row["ci_high"]
        between = "" if low is None else f"{low:.4f} to {high:.4f}"
        print(f"{row['task']:<32} {row['metric']:<14} {row['n']:>6} {row['value']:>10.4f} {between:>20}")


def _add_audit(commands: Any) -> None:
    parser = commands.add_parser(
        "audit", help="what the experts and routers of any MoE checkpoint do on text"
    )
    parser.add_argument("model", type=Path, help="a model folder of a known MoE family")
    parser.add_argument(
        "--tokens", type=Path, default=Path("results/prepare/tokens"), help="packed text of the tokens step"
    )
    parser.add_argument("--blocks", type=int, default=2, help="validation blocks of each domain")
    parser.add_argument("--out", type=Path, help="write every figure as JSON")
    parser.set_defaults(call=_audit)


def _audit(arguments: argparse.Namespace) -> None:
    from moesaic.experts import audit_model
    from moesaic.flow import files

    found = audit_model.run(arguments.model, audit_model.blocks(arguments.tokens, arguments.blocks))
    if arguments.out:
        files.write_json(arguments.out, found)
    print(f"{'layer':>5} {'lift':>8} {'95 %':>18} {'z':>7} {'similarity':>10} {'load CV':>8}")
    for item in found["layers"]:
        interval = f"{item['lift_low']:.3f} to {item['lift_high']:.3f}"
        print(
            f"{item['layer']:>5} {item['lift']:>8.3f} {interval:>18} {item['z']:>7.1f} {item['similarity']:>10.3f} {item['load_cv']:>8.3f}"
        )
    for devices, item in found["routing"]["placement"].items():
        print(
            f"{devices} GPUs: {item['round_robin']:.1%} of the tokens change the GPU, {item['minimum_cut']:.1%} with minimum cut"
        )


def _add_merge(commands: Any) -> None:
    parser = commands.add_parser("merge", help="write a split MoE as one dense model again")
    parser.add_argument("model", type=Path, help="a model folder of a known MoE family")
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument(
        "--factor",
        type=float,
        help="on the routed experts' output at conversion (times-k: experts per token), of models whose config.json does not say",
    )
    parser.add_argument(
        "--assignment",
        type=Path,
        help="assignment.parquet of the split: neurons return to the parent's order",
    )
    parser.set_defaults(call=_merge)


def _merge(arguments: argparse.Namespace) -> None:
    from moesaic.experts import merge

    made = merge.run(arguments.model, arguments.out, arguments.factor, arguments.assignment)
    logging.getLogger("moesaic").info(
        "%s: dense, FFN width %d, %d parameters", arguments.out, made["ffn"], made["parameters"]
    )


def _add_gguf(commands: Any) -> None:
    parser = commands.add_parser("gguf", help="write a converted MoE as one GGUF file for llama.cpp")
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dtype", default="f16", choices=["f32", "f16", "bf16", "q8_0"])
    parser.set_defaults(call=_gguf)


def _gguf(arguments: argparse.Namespace) -> None:
    from moesaic.model import to_gguf

    made = to_gguf.run(arguments.model, arguments.out, arguments.dtype)
    logging.getLogger("moesaic").info(
        "%s: llama.cpp's %s, %d tensors, %.1f MB",
        arguments.out, made["architecture"], made["tensors"], made["bytes"] / 1e6,
    )  # fmt: skip


def _add_fold(commands: Any) -> None:
    parser = commands.add_parser("fold", help="write a model whose layers skip as a standard one again")
    parser.add_argument("model", type=Path, help="a model folder that tune.depth made")
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument(
        "--approximate", action="store_true", help="round layers that run for some tokens only"
    )
    parser.set_defaults(call=_fold)


def _fold(arguments: argparse.Namespace) -> None:
    from moesaic.flow import files
    from moesaic.model import depth, load

    files.refuse_existing(arguments.out)
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
