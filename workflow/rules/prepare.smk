# ------------------------------------------------------------------ prepare


# find, verify and convert a dataset, once
rule prepare:
    output:
        train="results/{scale}/data/{dataset}/train.arrow",
        test="results/{scale}/data/{dataset}/test.arrow",
        manifest="results/{scale}/data/{dataset}/manifest.json",
    log:
        "logs/{scale}/data/{dataset}.log",
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        spec=dataset_settings,
        folder=subpath(output.manifest, parent=True),
    shell:
        "nme prepare --spec {params.spec:q} --output {params.folder} > {log} 2>&1"
