"""Claims stage: which of the paper's claims hold here, with intervals, by one rule.

A claim is data (``config/figures/claims.yaml``): one or more contrasts, each a difference of mean final test
accuracies in points. Seeds are paired: the same seed has the same start and the same order of the data in every cell,
so a contrast is taken within a seed, averaged over the recipes of the figure, and its interval is Student's t over the
seeds (n − 1 degrees of freedom, 95 %). A member that diverged counts with the accuracy of guessing. A contrast may be
of traces at the end of the training instead, in percent of tr G + |tr N| of the same network, so within ±100; a
diverged member has none and is left out.

The rule, δ being the smallest effect of interest (``smallest_effect``, in points). What a contrast is expected to be,
the hypothesis whose rejection speaks for the claim, and the one whose rejection speaks against it, by t-tests:

    positive      for: effect ≤ 0, and the estimate is at least δ     against: effect ≥ δ
    similar       for: |effect| ≥ δ                                   against: |effect| ≤ δ
    different     for: effect = 0, and the estimate is at least ±δ    against: |effect| ≥ δ
    not negative  for: effect ≤ −δ                                    against: effect ≥ −δ

A claim is *supported* if all its contrasts are as expected: its p is the largest of theirs. It is *not supported* if
the data speak against any of them: its p is the least of theirs times their number. Both are at 5 %, corrected for the
number of claims by Holm's method. Otherwise it is *inconclusive*.
"""

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.stats import t

from nme import parquet
from nme.errors import NmeError
from nme.files import atomic
from nme.provenance import provenance

LEVEL = 0.05


def effects(table: pd.DataFrame, contrast: dict) -> pd.DataFrame:
    """The contrast within each recipe and seed: in accuracy points, or in percent of tr G + |tr N|.

    Args:
        table: ``tables.collect``'s.
        contrast: ``plus`` and ``minus``, lists of terms; a term is a list of (activation, method, strength) to average.
            ``trace``: None, or of which ``operator`` and ``at`` which time.

    Returns:
        Rows seeds, columns panels (titles of recipes).

    Raises:
        NmeError: the table lacks a cell of the contrast.
    """
    values = _accuracies(table) if contrast["trace"] is None else _traces(table, **contrast["trace"])
    total: pd.DataFrame | float = 0.0
    for sign, terms in ((1, contrast["plus"]), (-1, contrast["minus"])):
        for term in terms:
            total = total + sign * _mean(values, term)
    return total


def _accuracies(table: pd.DataFrame) -> pd.DataFrame:
    """One row a member with its ``value``, the accuracy in percent."""
    return table.assign(value=100 * table["test_accuracy"].astype(float).where(~table["diverged"], table["chance"]))


def _traces(table: pd.DataFrame, operator: str, at: float) -> pd.DataFrame:
    """One row a member with its ``value``, the trace at a time in percent of tr G + |tr N|; missing if it diverged."""
    by = ["activation", "method", "strength", "panel", "seed"]
    wanted = table[(table["quantity"] == "traces") & (table["at"] == at)]
    traces = wanted.pivot_table("value", by, "operator").reindex(columns=["H", "G", "N"])
    share = 100 * traces[operator] / (traces["G"] + traces["N"].abs())
    return table[by].drop_duplicates().merge(share.rename("value").reset_index(), how="left", on=by)


def _mean(rows: pd.DataFrame, term: list) -> pd.DataFrame:
    """The mean over the cells of a term, rows seeds, columns panels."""
    found = []
    for activation, method, strength in term:
        is_cell = (rows["activation"] == activation) & (rows["method"] == method)
        cell = rows[is_cell & (rows["strength"] == float(strength))]
        if cell.empty:
            raise NmeError(f"the table has no value of {activation}/{method}/{strength}; make it again")
        found.append(cell.pivot(index="seed", columns="panel", values="value"))
    return sum(found) / len(found)


def judge(values: np.ndarray, expect: str, smallest: float) -> dict:
    """Estimate, interval and test of one contrast by the rule above.

    Args:
        values: the contrast of each seed.
        expect: positive, similar, different or not negative.
        smallest: δ.

    Returns:
        effect, low, high, and the p values for and against what is expected; with fewer than two seeds there is no
        interval, and both are 1.
    """
    n = len(values)
    effect = float(np.mean(values)) if n else np.nan
    if n < 2:
        return {"effect": effect, "low": np.nan, "high": np.nan, "p": 1.0, "p_against": 1.0}
    error = float(np.std(values, ddof=1)) / np.sqrt(n)
    half = t.ppf(1 - LEVEL / 2, n - 1) * error
    low, high = effect - half, effect + half

    def above(bound: float) -> float:
        """The p value of 'effect ≤ bound'."""
        return float(t.sf((effect - bound) / error, n - 1)) if error > 0 else float(effect <= bound)

    def below(bound: float) -> float:
        """The p value of 'effect ≥ bound'."""
        return float(t.cdf((effect - bound) / error, n - 1)) if error > 0 else float(effect >= bound)

    inside = max(above(-smallest), below(smallest))
    beyond = min(1.0, 2 * min(above(smallest), below(-smallest)))
    if expect == "positive":
        p, against = above(0) if effect >= smallest else 1.0, below(smallest)
    elif expect == "similar":
        p, against = inside, beyond
    elif expect == "different":
        p, against = min(1.0, 2 * min(above(0), below(0))) if abs(effect) >= smallest else 1.0, inside
    else:
        p, against = above(-smallest), below(-smallest)
    return {"effect": effect, "low": low, "high": high, "p": p, "p_against": against}


def holm(p: list[float]) -> list[float]:
    """The p values corrected by Holm's step-down method, in the given order.

    >>> [round(x, 3) for x in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p, kind="stable")
    corrected, highest = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
        corrected[i] = highest
    return corrected


def decide(spec: dict, tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One row a contrast: claim, says, figure, contrast, expect, effect, low, high, by_panel, p, p_against, p_holm,
    p_against_holm, verdict.

    Args:
        spec: ``grid.claims_spec``.
        tables: by path.

    The corrected p values and the verdict are the claim's, the same in all its rows.
    """
    claims = []
    for claim in spec["claims"]:
        rows = []
        for contrast in claim["contrasts"]:
            within = effects(tables[contrast["table"]], contrast).dropna()
            found = judge(within.mean(axis=1).to_numpy(), contrast["expect"], spec["smallest_effect"])
            head = {"claim": claim["number"], "says": claim["says"], "figure": claim["figure"]}
            by_panel = "; ".join(f"{panel}: {value:+.1f}" for panel, value in within.mean().items())
            rows.append(head | {"contrast": contrast["name"], "expect": contrast["expect"]} | found)
            rows[-1] |= {"by_panel": by_panel, "seeds": len(within)}
        claims.append(rows)
    corrected = holm([max(row["p"] for row in rows) for rows in claims])
    against = holm([min(1.0, len(rows) * min(row["p_against"] for row in rows)) for rows in claims])
    for rows, p, q in zip(claims, corrected, against, strict=True):
        verdict = "supported" if p <= LEVEL else "not supported" if q <= LEVEL else "inconclusive"
        for row in rows:
            row |= {"p_holm": p, "p_against_holm": q, "verdict": verdict}
    return pd.DataFrame([row for rows in claims for row in rows])


def written(rows: pd.DataFrame) -> pd.DataFrame:
    """The table for readers: one row a claim, its contrasts on lines of their own."""
    found = []
    for number, claim in rows.groupby("claim", sort=False):
        lines = [
            f"{r.contrast}: {r.effect:+.1f} [{r.low:+.1f}, {r.high:+.1f}], expected {r.expect} ({r.by_panel})"
            for r in claim.itertuples()
        ]
        first = claim.iloc[0]
        found.append(
            {
                "": number,
                "claim": first["says"],
                "figure": first["figure"],
                "effect in accuracy points [95 % interval]": "<br>".join(lines),
                "p for, against (Holm)": f"{first['p_holm']:.2g}, {first['p_against_holm']:.2g}",
                "verdict": first["verdict"],
            }
        )
    return pd.DataFrame(found)


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
    table = written(rows)
    counts = rows.groupby("claim")["verdict"].first().value_counts()
    summary = ", ".join(f"{n} {verdict}" for verdict, n in counts.items())
    seeds = int(rows["seeds"].max())
    rule = (
        f"Scale {spec['scale']}, {seeds} paired seeds, {summary}. Smallest effect of interest "
        f"{spec['smallest_effect']:g} points; the rule stands at the head of src/nme/claims.py."
    )
    if seeds > 1:
        needed = t.ppf(1 - LEVEL / len(spec["claims"]), seeds - 1)
        rule += f" With so many seeds and claims the first verdict takes a distance of {needed:.1f} standard errors."
    with atomic(output.with_suffix(".md")) as path:
        path.write_text(f"# Claims\n\n{rule}\n\n{_markdown(table)}", encoding="utf-8")
    with atomic(output.with_suffix(".html")) as path:
        page = f"<style>{_CSS}</style><h1>Claims</h1><p>{rule}</p>{table.to_html(index=False, escape=False, border=0)}"
        path.write_text(f'<!doctype html><meta charset="utf-8"><title>Claims</title>{page}\n', encoding="utf-8")
    record = provenance(spec, time.monotonic() - began)
    parquet.write(pa.Table.from_pandas(rows, preserve_index=False), output, record)


_CSS = "body{font:14px sans-serif;margin:2em} td,th{padding:.4em .8em;text-align:left;vertical-align:top}"


def _markdown(table: pd.DataFrame) -> str:
    rows = [[text.replace("|", "\\|") for text in row] for row in table.astype(str).to_numpy().tolist()]
    lines = [list(table.columns), ["---"] * len(table.columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
