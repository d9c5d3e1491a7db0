# ------------------------------------------------------------------- claims


# decide which of the paper's claims the figures' trainings support, by the rule of docs/science.md
rule claims:
    input:
        claims_tables,
    output:
        table="results/{scale}/claims.parquet",
        md="results/{scale}/claims.md",
        html=report(
            "results/{scale}/claims.html",
            caption="../report/claims.rst",
            category="Claims",
            labels={"figure": "Table"},
        ),
    log:
        "logs/{scale}/claims.log",
    localrule: True
    params:
        spec=claims_settings,
    shell:
        "nme claims --spec {params.spec:q} --output {output.table} {input} > {log} 2>&1"
