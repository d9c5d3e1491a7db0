# --------------------------------------------------------------------- plot


# draw a figure, and write the plotted numbers to a CSV
rule plot:
    input:
        table=figure_table,
    output:
        pdf="figures/{figure}.pdf",
        png=report(
            "figures/{figure}.png",
            caption="../report/figure.rst",
            category=figure_kind,
            labels=figure_labels,
        ),
        csv="figures/{figure}.csv",
    log:
        "logs/figures/{figure}.log",
    localrule: True
    params:
        spec=plot_settings,
        caption=figure_caption,
    shell:
        "nme plot --spec {params.spec:q} --table {input.table} --output {output.pdf} > {log} 2>&1"
