rule evaluate_part:
    input:
        upstream("evaluate_part"),
    output:
        "results/{owner}/evaluate_part/{stage}/{shard}/manifest.json",
    log:
        "logs/{owner}/evaluate_part/{stage}-{shard}.log",
    benchmark:
        "logs/benchmarks/{owner}/evaluate_part/{stage}-{shard}.jsonl"
    wildcard_constraints:
        stage="|".join(["dense", *CONFIG.stages]),
    conda:
        "../envs/cpu.yaml"
    threads: 1
    params:
        settings=settings("evaluate_part"),
        version=version("evaluate_part"),
    message:
        "{wildcards.owner}: evaluate after {wildcards.stage}, shard {wildcards.shard}"
    shell:
        "moesaic evaluate_part --config $MOESAIC_CONFIG --variant {wildcards.owner} --stage {wildcards.stage} --shard {wildcards.shard}"
        " --threads {threads} --log {log}"


rule evaluate_dense:
    input:
        upstream("evaluate", "dense"),
    output:
        "results/dense/evaluate/manifest.json",
    log:
        "logs/dense/evaluate.log",
    benchmark:
        "logs/benchmarks/dense/evaluate.jsonl"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    params:
        settings=settings("evaluate", "dense"),
        version=version("evaluate"),
    message:
        "dense parent: evaluate"
    shell:
        "moesaic evaluate --config $MOESAIC_CONFIG --stage dense"
        " --threads {threads} --log {log}"


rule evaluate:
    input:
        upstream("evaluate"),
    output:
        "results/{variant}/evaluate/{stage}/manifest.json",
    log:
        "logs/{variant}/evaluate/{stage}.log",
    benchmark:
        "logs/benchmarks/{variant}/evaluate/{stage}.jsonl"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    params:
        settings=settings("evaluate"),
        version=version("evaluate"),
    message:
        "{wildcards.variant}: evaluate after {wildcards.stage}"
    shell:
        "moesaic evaluate --config $MOESAIC_CONFIG --variant {wildcards.variant} --stage {wildcards.stage}"
        " --threads {threads} --log {log}"
