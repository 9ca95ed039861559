rule distill:
    input:
        upstream("distill"),
    output:
        "results/{variant}/distill/manifest.json",
    log:
        "logs/{variant}/distill.log",
    benchmark:
        "logs/benchmarks/{variant}/distill.jsonl"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    resources:
        nodes=1,
        ranks_per_node=1,
    params:
        settings=settings("distill"),
        version=version("distill"),
    message:
        "{wildcards.variant}: distillation"
    shell:
        "moesaic distill --config $MOESAIC_CONFIG --variant {wildcards.variant}"
        " --nodes {resources.nodes} --ranks-per-node {resources.ranks_per_node} --threads {threads} --log {log}"
