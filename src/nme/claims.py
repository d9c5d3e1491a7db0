"""Claims stage: which of the paper's claims hold, on each recipe, with intervals, by one rule (docs/theory.md, §8).

A claim is data (``config/figures/claims.yaml``): one or more contrasts. A contrast is a difference of final test
accuracies in points, taken within a recipe and a seed. The same seed has the same initial weights and the same order of
the data in every cell, so seeds are paired. Intervals and tests are Student's t over the seeds.

Accuracies enter in points, and beside them on the logit scale, which does not shrink near 100 %. A contrast may be of a
trace at the end of the training instead, in percent of tr G + |tr N| of the same network, so within ±100.

**Strengths.** ``over`` says how several cells of a term enter:

    mean    their mean is one effect
    trend   one effect: the change from the first to the last cell on the line fitted over their ranks
    each    one effect per cell: all must be as expected (intersection-union); against: any of them (Bonferroni)
    any     one effect per cell: one must be as expected (Bonferroni); against: all of them (intersection-union)

**Tests.** With δ the smallest effect of interest (``smallest_effect``, in the unit of the effect), the hypothesis whose
rejection speaks for an expectation, and the one whose rejection speaks against it:

    positive      for: effect ≤ 0, and the estimate is at least δ     against: effect ≥ δ
    similar       for: |effect| ≥ δ                                   against: |effect| ≤ δ
    different     for: effect = 0, and the estimate is at least ±δ    against: |effect| ≥ δ
    not negative  for: effect ≤ −δ                                    against: effect ≥ −δ

Effects without any spread over the seeds decide nothing.

**Divergence** is an outcome of its own. A seed in which a member of the effect diverged leaves the t-test. The plus
side is the cells with positive weight, the minus side those with negative weight. A side counts a seed if any of its
members diverged. Where a member diverged and both sides have the same number of cells, Fisher's exact test compares the
counts. Where a difference in divergence speaks in the direction that is tested, the effect's p is twice the smaller p
of the two tests. Fisher's test is one-sided for ``positive`` and ``not negative`` (diverging less is better), otherwise
two-sided. The remaining accuracies decide
nothing in favour of the side that diverged more often. They show no similarity where the two-sided test of the counts
is significant at 5 %.

**Verdicts** are per claim and recipe, for the recipes that all contrasts of the claim have. A claim is *supported* on a
recipe if all its contrasts are as expected: its p is the largest of theirs. It is *not supported* if the data speak
against any of them: its p is the least of theirs times their number. Both are at 5 %, corrected by Holm's method for
all pairs of a claim and a recipe. Otherwise it is *inconclusive*. The probability of any wrong verdict in favour is at
most 5 %, and that of any wrong verdict against is at most 5 %, so together at most 10 %. Simultaneous intervals divide
the 5 % in the same way: all lower ends hold together with 95 %, and all upper ends do.

**Choose the number of seeds before you look.** Adding seeds until a verdict appears is optional stopping, and the error
rates above no longer hold. Results are conditional on one test set per dataset: no interval contains its noise.
"""

import html
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from nme import parquet
from nme.contrasts import judge_contrast
from nme.errors import NmeError
from nme.files import atomic
from nme.provenance import provenance
from nme.statistics import combine_contrasts, verdicts


def decide(spec: dict, tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Decide all claims on all their recipes.

    Args:
        spec: ``grid.claims_spec``.
        tables: by path.

    Returns:
        One row per claim, recipe and contrast: claim, says, figure, contrast, expect, over; what ``judge_contrast``
        returns; and p_holm, p_against_holm and verdict, which are those of the claim on the recipe and the same in all
        its rows.

    Raises:
        NmeError: a table lacks a cell or a recipe of a contrast.
    """
    family = sum(len(claim["recipes"]) for claim in spec["claims"])
    rows = {}
    for claim in spec["claims"]:
        for contrast in claim["contrasts"]:
            sizes = (family, len(claim["contrasts"]))
            judged = judge_contrast(tables[contrast["table"]], contrast, spec["smallest_effect"], *sizes)
            by_recipe = {row["recipe"]: row for row in judged}
            for recipe in claim["recipes"]:
                if recipe not in by_recipe:
                    raise NmeError(f"{contrast['table']} has no recipe {recipe}; make it again")
                head = {"claim": claim["number"], "says": claim["says"], "figure": claim["figure"]}
                head |= {"contrast": contrast["name"], "expect": contrast["expect"], "over": contrast["over"]}
                rows.setdefault((claim["number"], recipe), []).append(head | by_recipe[recipe])
    pairs = [combine_contrasts(*([r[key] for r in own] for key in ("p", "p_against"))) for own in rows.values()]
    decided = verdicts([p for p, _ in pairs], [against for _, against in pairs])
    for own, (p, against, verdict) in zip(rows.values(), decided, strict=True):
        for row in own:
            row |= {"p_holm": p, "p_against_holm": against, "verdict": verdict}
    return pd.DataFrame([row for own in rows.values() for row in own])


def overall(claim: pd.DataFrame) -> str:
    """The verdict of a claim over its recipes: one word if they agree, otherwise which verdict holds where.

    Args:
        claim: the rows of one claim of ``decide``.
    """
    first = claim.drop_duplicates("recipe")
    if first["verdict"].nunique() == 1:
        return first["verdict"].iloc[0]
    # A title names one recipe, or the recipe's own name does.
    names = first["panel"].where(~first["panel"].duplicated(keep=False), first["recipe"])
    groups = [(v, names[first["verdict"] == v]) for v in ("supported", "not supported", "inconclusive")]
    return "; ".join(f"{verdict} on {' and '.join(where)}" for verdict, where in groups if len(where))


def readers_table(rows: pd.DataFrame) -> pd.DataFrame:
    """The table for readers: one row per claim, with a line per contrast and recipe.

    Args:
        rows: ``decide``'s.
    """
    found = []
    for number, claim in rows.groupby("claim", sort=False):
        effects = []
        for contrast, own in claim.groupby("contrast", sort=False):
            effects.append(f"{contrast} (expected {own['expect'].iloc[0]}):")
            effects += [f"– {r.panel}: {_line(r)}" for r in own.itertuples()]
        first = claim.drop_duplicates("recipe")
        found.append(
            {
                "": number,
                "claim": claim["says"].iloc[0],
                "figure": claim["figure"].iloc[0],
                "effect [95 % interval] {simultaneous interval}": "<br>".join(map(html.escape, effects)),
                "p for, against (Holm)": "<br>".join(
                    html.escape(f"{r.panel}: {r.p_holm:.2g}, {r.p_against_holm:.2g}") for r in first.itertuples()
                ),
                "verdict": html.escape(overall(claim)),
            }
        )
    return pd.DataFrame(found)


def summary_table(rows: pd.DataFrame) -> pd.DataFrame:
    """The table at a glance: one row per claim, one column per recipe with the effects, 95 % intervals and the verdict.

    Args:
        rows: ``decide``'s.
    """
    recipes = rows.drop_duplicates("recipe")[["recipe", "panel"]]
    found = []
    for number, claim in rows.groupby("claim", sort=False):
        line = {"claim": f"{number}. {claim['says'].iloc[0]}"}
        for recipe, panel in recipes.itertuples(index=False):
            own = claim[claim["recipe"] == recipe]
            title = panel if (recipes["panel"] == panel).sum() == 1 else recipe
            effects = "; ".join(_short(r) for r in own.itertuples())
            line[html.escape(title)] = f"<b>{own['verdict'].iloc[0]}</b><br>{effects}" if len(own) else "–"
        found.append(line)
    return pd.DataFrame(found)


def _short(row: object) -> str:
    unit = "" if row.unit == "points" else " %"
    chosen = f" at {row.cell}" if row.cell else ""
    interval = f" [{row.low:+.1f}, {row.high:+.1f}]" if np.isfinite(row.low) else ""
    return f"{row.effect:+.1f}{unit}{interval}{chosen}" if np.isfinite(row.effect) else "no pair of seeds"


def _line(row: object) -> str:
    unit = "points" if row.unit == "points" else "%"
    effect = f"{row.effect:+.1f} {unit}" if np.isfinite(row.effect) else "no pair of seeds without divergence"
    parts = [effect, f" at {row.cell}" if row.cell else ""]
    if np.isfinite(row.low):
        parts += [f" [{row.low:+.1f}, {row.high:+.1f}]"]
        parts += [f" {{{row.low_simultaneous:+.1f}, {row.high_simultaneous:+.1f}}}"]
    if np.isfinite(row.effect_logit):
        parts += [f", logit {row.effect_logit:+.2f}"]
    if row.diverged_plus or row.diverged_minus:
        parts += [f", diverged {row.diverged_plus} against {row.diverged_minus} of {row.seeds} seeds"]
    return "".join(parts)


def write_claims(spec: dict, output: Path) -> None:
    """Decide the claims and write them as parquet, Markdown and HTML.

    Args:
        spec: ``grid.claims_spec``.
        output: the parquet file; the others have its name with their ending.

    Raises:
        NmeError: a table is missing, damaged, or not of these settings.
    """
    began = time.monotonic()
    paths = {contrast["table"] for claim in spec["claims"] for contrast in claim["contrasts"]}
    tables = {path: parquet.read(Path(path))[0].to_pandas() for path in paths}
    rows = decide(spec, tables)
    summary, table, note = summary_table(rows), readers_table(rows), _note(spec, rows)
    with atomic(output.with_suffix(".md")) as path:
        text = f"# Claims\n\n{note}\n\n{_markdown(summary)}\n## Effects\n\n{_markdown(table)}"
        path.write_text(text, encoding="utf-8")
    with atomic(output.with_suffix(".html")) as path:
        parts = [part.to_html(index=False, escape=False, border=0) for part in (summary, table)]
        page = f"<style>{_CSS}</style><h1>Claims</h1><p>{note}</p>{'<h2>Effects</h2>'.join(parts)}"
        path.write_text(f'<!doctype html><meta charset="utf-8"><title>Claims</title>{page}\n', encoding="utf-8")
    record = provenance(spec, time.monotonic() - began)
    parquet.write(pa.Table.from_pandas(rows, preserve_index=False), output, record)


def _note(spec: dict, rows: pd.DataFrame) -> str:
    """What a reader of the table needs to know: its size, the rule, and what the error rates depend on."""
    pairs = rows.drop_duplicates(["claim", "recipe"])
    counts = pairs["verdict"].value_counts()
    smallest = spec["smallest_effect"]
    return (
        f"Scale {spec['scale']}, {rows['seeds'].max()} paired seeds. A verdict per claim and recipe: "
        f"{', '.join(f'{n} {verdict}' for verdict, n in counts.items())}. "
        f"Smallest effect of interest: {smallest['points']:g} points, {smallest['percent']:g} % of a trace. "
        f"Holm's method corrects for {len(pairs)} verdicts, at 5 % in favour and at 5 % against (together 10 %). "
        "The number of seeds was chosen beforehand; adding seeds until a verdict appears would invalidate it. "
        "Results are conditional on one test set per dataset. "
        "The rule is at the head of src/nme/claims.py and in docs/science.md."
    )


_CSS = "body{font:14px sans-serif;margin:2em} td,th{padding:.4em .8em;text-align:left;vertical-align:top}"


def _markdown(table: pd.DataFrame) -> str:
    rows = [[text.replace("|", "\\|") for text in row] for row in table.astype(str).to_numpy().tolist()]
    lines = [list(table.columns), ["---"] * len(table.columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
