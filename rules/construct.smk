rule construct:
    input:
        upstream("construct"),
    output:
        "results/{variant}/construct/manifest.json",
    log:
        "logs/{variant}/construct.log",
    benchmark:
        "logs/benchmarks/{variant}/construct.jsonl"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    params:
        settings=settings("construct"),
        version=version("construct"),
    message:
        "{wildcards.variant}: construct experts"
    shell:
        "moesaic construct --config $MOESAIC_CONFIG --variant {wildcards.variant}"
        " --threads {threads} --log {log}"
