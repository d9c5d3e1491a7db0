include: "workflow/Snakefile"


# An included file sets no default target.
rule default:
    input:
        rules.all.input,
