# ---------------------------------------------------------------------- map


# compare the effects of claims on each recipe with the share of the NME in the penalty's update
rule map:
    input:
        map_tables,
    output:
        "results/{scale}/map.parquet",
    log:
        "logs/{scale}/map.log",
    localrule: True
    params:
        spec=map_settings,
    shell:
        "nme map --spec {params.spec:q} --output {output} {input} > {log} 2>&1"
