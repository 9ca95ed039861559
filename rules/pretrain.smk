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
        version=version("pretrain"),
    message:
        "{wildcards.variant}: continual pre-training"
    shell:
        "moesaic pretrain --config $MOESAIC_CONFIG --variant {wildcards.variant}"
        " --nodes {resources.nodes} --ranks-per-node {resources.ranks_per_node} --threads {threads} --log {log}"
