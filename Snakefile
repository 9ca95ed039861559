"""Moesaic: dense LLM -> Mixture of Experts. This file is the table of contents; the steps are in rules/, the science in src/."""

from snakemake.utils import min_version

min_version("9.6")


include: "rules/common.smk"
include: "rules/prepare.smk"
include: "rules/construct.smk"
include: "rules/pretrain.smk"
include: "rules/tune.smk"
include: "rules/preference.smk"
include: "rules/teacher.smk"
include: "rules/rounds.smk"
include: "rules/distill.smk"
include: "rules/evaluate.smk"
include: "rules/report.smk"


onstart:
    hooks.start(CONFIG)


onsuccess:
    hooks.finish(CONFIG, "FINISHED")


onerror:
    hooks.finish(CONFIG, "FAILED")


rule all:
    default_target: True
    input:
        "results/report.html",


rule models:
    input:
        [
            at(stage, variant=variant)
            for variant in CONFIG.variants
            for stage in CONFIG.stages
        ],


localrules:
    all,
    models,
