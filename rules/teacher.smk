rule teacher:
    input:
        upstream("teacher"),
    output:
        "results/{owner}/teacher/{cache}/manifest.json",
    log:
        "logs/{owner}/teacher/{cache}.log",
    benchmark:
        "logs/benchmarks/{owner}/teacher/{cache}.jsonl"
    wildcard_constraints:
        cache="(tokens|chat)-top[0-9]+-[0-9a-f]+",
    conda:
        "../envs/cpu.yaml"
    threads: 1
    resources:
        nodes=1,
        ranks_per_node=1,
    params:
        settings=settings("teacher"),
        version=version("teacher"),
    message:
        "{wildcards.owner}: what the teacher says of {wildcards.cache}"
    shell:
        "moesaic teacher --config $MOESAIC_CONFIG --variant {wildcards.owner} --stage {wildcards.cache}"
        " --nodes {resources.nodes} --ranks-per-node {resources.ranks_per_node} --threads {threads} --log {log}"
