rule teacher_text:
    input:
        upstream("teacher_text"),
    output:
        "results/{owner}/teacher_text/{cache}/{shard}/manifest.json",
    log:
        "logs/{owner}/teacher_text/{cache}-{shard}.log",
    benchmark:
        "logs/benchmarks/{owner}/teacher_text/{cache}-{shard}.jsonl"
    wildcard_constraints:
        cache="[0-9a-f]{12}",
    conda:
        "../envs/cpu.yaml"
    threads: 1
    params:
        settings=settings("teacher_text"),
        version=version("teacher_text"),
    message:
        "{wildcards.owner}: the teacher answers, shard {wildcards.shard}"
    shell:
        "moesaic teacher_text --config $MOESAIC_CONFIG --variant {wildcards.owner} --stage {wildcards.cache} --shard {wildcards.shard}"
        " --threads {threads} --log {log}"


rule student_text:
    input:
        upstream("student_text"),
    output:
        "results/{variant}/rounds/{round}/student_text/{shard}/manifest.json",
    log:
        "logs/{variant}/rounds/{round}/student_text-{shard}.log",
    benchmark:
        "logs/benchmarks/{variant}/rounds/{round}/student_text-{shard}.jsonl"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    params:
        settings=settings("student_text"),
        version=version("student_text"),
    message:
        "{wildcards.variant}: round {wildcards.round}, the student answers, shard {wildcards.shard}"
    shell:
        "moesaic student_text --config $MOESAIC_CONFIG --variant {wildcards.variant} --round {wildcards.round} --shard {wildcards.shard}"
        " --threads {threads} --log {log}"


rule pair_scores:
    input:
        upstream("pair_scores"),
    output:
        "results/{variant}/rounds/{round}/pair_scores/{shard}/manifest.json",
    log:
        "logs/{variant}/rounds/{round}/pair_scores-{shard}.log",
    benchmark:
        "logs/benchmarks/{variant}/rounds/{round}/pair_scores-{shard}.jsonl"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    params:
        settings=settings("pair_scores"),
        version=version("pair_scores"),
    message:
        "{wildcards.variant}: round {wildcards.round}, score pairs, shard {wildcards.shard}"
    shell:
        "moesaic pair_scores --config $MOESAIC_CONFIG --variant {wildcards.variant} --round {wildcards.round} --shard {wildcards.shard}"
        " --threads {threads} --log {log}"


rule distill_round:
    input:
        upstream("distill"),
    output:
        "results/{variant}/rounds/{round}/distill/manifest.json",
    log:
        "logs/{variant}/rounds/{round}/distill.log",
    benchmark:
        "logs/benchmarks/{variant}/rounds/{round}/distill.jsonl"
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
        "{wildcards.variant}: round {wildcards.round}, distillation"
    shell:
        "moesaic distill --config $MOESAIC_CONFIG --variant {wildcards.variant} --round {wildcards.round}"
        " --nodes {resources.nodes} --ranks-per-node {resources.ranks_per_node} --threads {threads} --log {log}"
