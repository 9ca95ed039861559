rule pretrain:
    input:
        upstream("pretrain"),
    output:
        "results/{variant}/pretrain/manifest.json",
    log:
        "logs/{variant}/pretrain.log",
    benchmark:
        "logs/benchmarks/{variant}/pretrain.jsonl"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    resources:
        nodes=1,
        ranks_per_node=1,
    params:
        settings=settings("pretrain"),
        inputs=named("pretrain"),
        version=version("pretrain"),
    message:
        "{wildcards.variant}: continual pre-training"
    shell:
        "moesaic pretrain --settings {params.settings:q} --in {params.inputs:q} --out $(dirname {output[0]})"
        " --nodes {resources.nodes} --ranks-per-node {resources.ranks_per_node} --threads {threads} --log {log}"
