# ------------------------------------------------------------------ measure


# loss and NME of a small network over two of its weights; nothing is trained
rule landscape:
    output:
        "results/{scale}/landscape/{figure}.parquet",
    log:
        "logs/{scale}/landscape/{figure}.log",
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        spec=landscape_settings,
    shell:
        "nme landscape --spec {params.spec:q} --output {output} > {log} 2>&1"
