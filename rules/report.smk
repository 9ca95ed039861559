rule report:
    input:
        upstream("report"),
    output:
        "results/manifest.json",
        report("results/report.html", category="Moesaic"),
        "results/summary.json",
    log:
        "logs/report.log",
    conda:
        "../envs/cpu.yaml"
    threads: 1
    params:
        settings=settings("report"),
        version=version("report"),
    message:
        "report: tables, figures, one page"
    shell:
        "moesaic report --config $MOESAIC_CONFIG" " --threads {threads} --log {log}"
