rule sample:
    input:
        upstream("sample"),
    output:
        "results/{variant}/rounds/{round}/sample/{shard}/manifest.json",
    log:
        "logs/{variant}/rounds/{round}/sample-{shard}.log",
    benchmark:
        "logs/benchmarks/{variant}/rounds/{round}/sample-{shard}.jsonl"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    params:
        settings=settings("sample"),
        version=version("sample"),
    message:
        "{wildcards.variant}: round {wildcards.round}, sample answers, shard {wildcards.shard}"
    shell:
        "moesaic sample --config $MOESAIC_CONFIG --variant {wildcards.variant}"
        " --round {wildcards.round} --shard {wildcards.shard} --threads {threads} --log {log}"


rule rate:
    input:
        upstream("rate"),
    output:
        "results/{variant}/rounds/{round}/rate/{shard}/manifest.json",
    log:
        "logs/{variant}/rounds/{round}/rate-{shard}.log",
    benchmark:
        "logs/benchmarks/{variant}/rounds/{round}/rate-{shard}.jsonl"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    params:
        settings=settings("rate"),
        version=version("rate"),
    message:
        "{wildcards.variant}: round {wildcards.round}, verify, rate and pair answers, shard {wildcards.shard}"
    shell:
        "moesaic rate --config $MOESAIC_CONFIG --variant {wildcards.variant}"
        " --round {wildcards.round} --shard {wildcards.shard} --threads {threads} --log {log}"


rule preference_round:
    input:
        upstream("preference"),
    output:
        "results/{variant}/rounds/{round}/preference/manifest.json",
    log:
        "logs/{variant}/rounds/{round}/preference.log",
    benchmark:
        "logs/benchmarks/{variant}/rounds/{round}/preference.jsonl"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    resources:
        nodes=1,
        ranks_per_node=1,
    params:
        settings=settings("preference"),
        version=version("preference"),
    message:
        "{wildcards.variant}: round {wildcards.round}, preference tuning"
    shell:
        "moesaic preference --config $MOESAIC_CONFIG --variant {wildcards.variant} --round {wildcards.round}"
        " --nodes {resources.nodes} --ranks-per-node {resources.ranks_per_node} --threads {threads} --log {log}"


rule preference:
    input:
        upstream("preference"),
    output:
        "results/{variant}/preference/manifest.json",
    log:
        "logs/{variant}/preference.log",
    benchmark:
        "logs/benchmarks/{variant}/preference.jsonl"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    resources:
        nodes=1,
        ranks_per_node=1,
    params:
        settings=settings("preference"),
        version=version("preference"),
    message:
        "{wildcards.variant}: preference tuning"
    shell:
        "moesaic preference --config $MOESAIC_CONFIG --variant {wildcards.variant}"
        " --nodes {resources.nodes} --ranks-per-node {resources.ranks_per_node} --threads {threads} --log {log}"
