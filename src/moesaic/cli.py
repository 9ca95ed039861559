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
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from moesaic import tools
from moesaic.errors import InputError, Interrupted
from moesaic.flow import folders, launch, logs, paths
from moesaic.flow.step import STEPS


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, run, and turn the errors that a user may meet into one line and an exit code."""
    arguments = parser().parse_args(argv)
    _environment()
    try:
        _logging(getattr(arguments, "log", None))
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
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            logging.getLogger("moesaic").error(
                "error: no room left on the disk for %s; free some space and run again, finished steps and checkpoints are kept",
                error.filename or "a file",
            )
            sys.exit(2)
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            logging.getLogger("moesaic").error(
                "error: %s: %s; make it writable (or readable), or work in a folder of your own",
                error.filename or "a file",
                (error.strerror or "not allowed").lower(),
            )
            sys.exit(2)
        logging.getLogger("moesaic").exception("unexpected error")
        sys.exit(1)
    except Exception:
        # Into the log file too, not to the terminal alone.
        logging.getLogger("moesaic").exception("unexpected error")
        sys.exit(1)


class _Described(argparse.ArgumentParser):
    """A command's parser, whose help begins with what the command does and ends with its exit codes."""

    def format_help(self) -> str:
        """The step's docstring is read when help is asked for, so that commands begin at once."""
        if self.description is None:
            from moesaic.reference import commands

            self.description = commands.what(self.prog.split()[-1])
        self.epilog = "exit codes: 0 done, 1 an unexpected error, 2 something that you can change, 75 stopped by a signal after saving"
        return super().format_help()


def parser() -> argparse.ArgumentParser:
    """All commands and their arguments; the reference of the documentation is made from it."""
    made = argparse.ArgumentParser(
        prog="moesaic", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = made.add_subparsers(required=True, metavar="COMMAND", parser_class=_Described)
    for step in STEPS.values():
        command = commands.add_parser(step.name, help=f"run the {step.name} step")
        command.add_argument(
            "--config", default="config/config.yaml", help="settings, inputs and folder follow from it"
        )
        command.add_argument("--variant", help="which variant of the configuration")
        command.add_argument(
            "--stage",
            help="evaluate, evaluate_part: the stage whose model is evaluated (dense, construct, ...); teacher, teacher_text: the stage that trains on what the teacher says",
        )
        sharded = (*folders.SHARDED, *folders.ROUNDS, "teacher_text", "evaluate_part")
        if step.name in sharded:
            command.add_argument("--round", type=int, help="from 1; the last one when left out")
            command.add_argument("--shard", type=int, default=0, help="from 0 (steps before a training)")
        command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=tools.SET)
        command.add_argument("--log", type=Path, help="also write the log to this file")
        command.add_argument(
            "--threads",
            type=int,
            help="CPU threads of one task: of each rank under srun, of all ranks together on one machine",
        )
        if step.distributed:
            command.add_argument("--nodes", type=int, default=1, help="of the allocation")
            command.add_argument(
                "--ranks-per-node", type=int, default=1, help="processes per node, usually one per GPU"
            )
        command.set_defaults(call=_run_step, step=step)
    tools.add(commands)
    return made


def _run_step(arguments: argparse.Namespace) -> None:
    part = paths.Part(arguments.round, arguments.shard) if hasattr(arguments, "round") else None
    plan = paths.plan_step(
        tools.load(arguments), arguments.step.name, arguments.variant, arguments.stage, part
    )
    ranks = launch.Ranks(
        getattr(arguments, "nodes", 1), getattr(arguments, "ranks_per_node", 1), arguments.threads
    )
    launch.run(arguments.step, plan.settings, plan.inputs, plan.out, ranks)


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
    logs.begin(handlers, "%(asctime)s %(message)s")


if __name__ == "__main__":
    main()
