# -------------------------------------------------------------------- train


# train the members of one cell in one process; a stopped job continues. The folder of snapshots holds the networks that
# a figure measures; for most cells it is empty
rule train:
    input:
        unpack(cell_data),
    output:
        metrics="results/{scale}/train/{recipe}/{activation}/{method}/{strength}/seed={seeds}/metrics.parquet",
        snapshots=directory(
            "results/{scale}/train/{recipe}/{activation}/{method}/{strength}/seed={seeds}/snapshots"
        ),
    log:
        "logs/{scale}/train/{recipe}/{activation}/{method}/{strength}/seed={seeds}.log",
    benchmark:
        "logs/{scale}/train/{recipe}/{activation}/{method}/{strength}/seed={seeds}.benchmark.tsv"
    threads: lambda wildcards: threads_of(wildcards) * recipe_of(wildcards).processes
    resources:
        gpu=gpus_of,
        mem_mb=lambda wildcards, attempt: recipe_of(wildcards).memory_mb * attempt,
        runtime=lambda wildcards, attempt: recipe_of(wildcards).runtime_minutes
        * attempt,
    params:
        spec=cell_settings,
    # exec: a signal to the job reaches the process that saves its state, and no other process
    shell:
        "exec nme train --spec {params.spec:q} --data {input.manifest} --output {output.metrics} > {log} 2>&1"
