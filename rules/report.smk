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
        inputs=named("report"),
        version=version("report"),
    message:
        "report: tables, figures, one page"
    shell:
        "moesaic report --settings {params.settings:q} --in {params.inputs:q} --out $(dirname {output[0]})"
        " --threads {threads} --log {log}"
