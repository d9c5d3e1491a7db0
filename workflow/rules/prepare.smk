# ------------------------------------------------------------------ prepare


# find, verify and convert a dataset that fits into memory
rule prepare:
    output:
        train="results/{scale}/data/{dataset}/train.arrow",
        test="results/{scale}/data/{dataset}/test.arrow",
        manifest="results/{scale}/data/{dataset}/manifest.json",
    log:
        "logs/{scale}/data/{dataset}.log",
    wildcard_constraints:
        dataset=dataset_names(streamed=False),
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        spec=dataset_settings,
        folder=subpath(output.manifest, parent=True),
    shell:
        "nme prepare --spec {params.spec:q} --output {params.folder} > {log} 2>&1"


# the same for a dataset that stays on disk; a stopped job continues
rule prepare_shards:
    output:
        shards=directory("results/{scale}/data/{dataset}/shards"),
        manifest="results/{scale}/data/{dataset}/manifest.json",
    log:
        "logs/{scale}/data/{dataset}.log",
    wildcard_constraints:
        dataset=dataset_names(streamed=True),
    threads: 16
    resources:
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=lambda wildcards, attempt: 240 * attempt,
    params:
        spec=dataset_settings,
        folder=subpath(output.manifest, parent=True),
    shell:
        "exec nme prepare --spec {params.spec:q} --output {params.folder} --threads {threads} > {log} 2>&1"
