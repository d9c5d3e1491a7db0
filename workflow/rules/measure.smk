# ------------------------------------------------------------------ measure


# measure the curvature of the networks that a training job kept
rule measure:
    input:
        unpack(cell_data),
        snapshots=rules.train.output.snapshots,
    output:
        "results/{scale}/measure/{recipe}/{activation}/{method}/{strength}/seed={seeds}/measured.parquet",
    log:
        "logs/{scale}/measure/{recipe}/{activation}/{method}/{strength}/seed={seeds}.log",
    benchmark:
        "logs/{scale}/measure/{recipe}/{activation}/{method}/{strength}/seed={seeds}.benchmark.tsv"
    threads: threads_of
    resources:
        gpu=lambda wildcards: min(1, gpus_of(wildcards)),
        mem_mb=lambda wildcards, attempt: recipe_of(wildcards).memory_mb * attempt,
        runtime=lambda wildcards, attempt: recipe_of(wildcards).runtime_minutes
        * attempt,
    params:
        spec=measure_settings,
    shell:
        "exec nme measure --spec {params.spec:q} --data {input.manifest} --snapshots {input.snapshots}"
        " --output {output} > {log} 2>&1"


# compute loss and NME of a small network over two of its weights; nothing is trained
rule landscape:
    output:
        "results/{scale}/landscape/{figure}.parquet",
    log:
        "logs/{scale}/landscape/{figure}.log",
    wildcard_constraints:
        figure=names_of_figures(lambda figure: figure.landscape),
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 10 * attempt,
    params:
        spec=landscape_settings,
    shell:
        "nme landscape --spec {params.spec:q} --output {output} > {log} 2>&1"
