rule tune:
    input:
        upstream("tune"),
    output:
        "results/{variant}/tune/manifest.json",
    log:
        "logs/{variant}/tune.log",
    benchmark:
        "logs/benchmarks/{variant}/tune.jsonl"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    resources:
        nodes=1,
        ranks_per_node=1,
    params:
        settings=settings("tune"),
        version=version("tune"),
    message:
        "{wildcards.variant}: supervised fine-tuning"
    shell:
        "moesaic tune --config $MOESAIC_CONFIG --variant {wildcards.variant}"
        " --nodes {resources.nodes} --ranks-per-node {resources.ranks_per_node} --threads {threads} --log {log}"
