rule dense:
    input:
        upstream("dense"),
    output:
        "results/dense/manifest.json",
    log:
        "logs/dense.log",
    benchmark:
        "logs/benchmarks/dense.jsonl"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    params:
        settings=settings("dense"),
        version=version("dense"),
    message:
        "dense parent: load, check, save"
    shell:
        "moesaic dense --config $MOESAIC_CONFIG" " --threads {threads} --log {log}"


rule documents:
    input:
        upstream("documents"),
    output:
        "results/prepare/documents/manifest.json",
    log:
        "logs/prepare/documents.log",
    benchmark:
        "logs/benchmarks/prepare/documents.jsonl"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    params:
        settings=settings("documents"),
        version=version("documents"),
    message:
        "documents: clean, deduplicate, split"
    shell:
        "moesaic documents --config $MOESAIC_CONFIG" " --threads {threads} --log {log}"


rule tokens:
    input:
        upstream("tokens"),
    output:
        "results/prepare/tokens/manifest.json",
    log:
        "logs/prepare/tokens.log",
    benchmark:
        "logs/benchmarks/prepare/tokens.jsonl"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    params:
        settings=settings("tokens"),
        version=version("tokens"),
    message:
        "tokens: tokenise and pack"
    shell:
        "moesaic tokens --config $MOESAIC_CONFIG" " --threads {threads} --log {log}"


rule chat:
    input:
        upstream("chat"),
    output:
        "results/prepare/chat/manifest.json",
    log:
        "logs/prepare/chat.log",
    conda:
        "../envs/cpu.yaml"
    threads: 1
    params:
        settings=settings("chat"),
        version=version("chat"),
    message:
        "chat: render conversations, mask answers"
    shell:
        "moesaic chat --config $MOESAIC_CONFIG" " --threads {threads} --log {log}"


rule tasks:
    input:
        upstream("tasks"),
    output:
        "results/prepare/tasks/manifest.json",
    log:
        "logs/prepare/tasks.log",
    conda:
        "../envs/cpu.yaml"
    threads: 1
    params:
        settings=settings("tasks"),
        version=version("tasks"),
    message:
        "tasks: write lm-eval task folders"
    shell:
        "moesaic tasks --config $MOESAIC_CONFIG" " --threads {threads} --log {log}"


rule temporal:
    input:
        upstream("temporal"),
    output:
        "results/prepare/temporal/manifest.json",
    log:
        "logs/prepare/temporal.log",
    conda:
        "../envs/cpu.yaml"
    threads: 1
    params:
        settings=settings("temporal"),
        version=version("temporal"),
    message:
        "temporal: questions about time"
    shell:
        "moesaic temporal --config $MOESAIC_CONFIG" " --threads {threads} --log {log}"


rule science:
    input:
        upstream("science"),
    output:
        "results/prepare/science/manifest.json",
    log:
        "logs/prepare/science.log",
    conda:
        "../envs/cpu.yaml"
    threads: 1
    params:
        settings=settings("science"),
        version=version("science"),
    message:
        "science: numeric questions on magnetic fields"
    shell:
        "moesaic science --config $MOESAIC_CONFIG" " --threads {threads} --log {log}"


rule reliability:
    input:
        upstream("reliability"),
    output:
        "results/prepare/reliability/manifest.json",
    log:
        "logs/prepare/reliability.log",
    conda:
        "../envs/cpu.yaml"
    threads: 1
    params:
        settings=settings("reliability"),
        version=version("reliability"),
    message:
        "reliability: sets by axis, missing ones listed"
    shell:
        "moesaic reliability --config $MOESAIC_CONFIG"
        " --threads {threads} --log {log}"
