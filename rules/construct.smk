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
        inputs=named("construct"),
        version=version("construct"),
    message:
        "{wildcards.variant}: construct experts"
    shell:
        "moesaic construct --settings {params.settings:q} --in {params.inputs:q} --out $(dirname {output[0]})"
        " --threads {threads} --log {log}"
