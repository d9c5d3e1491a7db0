# ------------------------------------------------------------------- tables


# collect the final metrics of a figure's cells, one row per member
rule tables:
    input:
        figure_sources,
    output:
        "results/{scale}/tables/{figure}.parquet",
    log:
        "logs/{scale}/tables/{figure}.log",
    wildcard_constraints:
        figure=names_of_figures(lambda figure: figure.grid),
    localrule: True
    params:
        spec=table_settings,
    shell:
        "nme tables --spec {params.spec:q} --output {output} > {log} 2>&1"
