"""Small tables of accuracies and traces, and contrasts and claims about them, for tests."""

import pandas as pd

CHANCE = {"one": 0.1, "other": 0.5}
SGD, PENALTY, SAM = ("relu", "sgd", "0"), ("relu", "grad_norm", "0.1"), ("relu", "sam", "0.1")
STRONG = ("relu", "grad_norm", "0.3")
SMALLEST = {"points": 1.0, "percent": 5.0}

Cells = dict[tuple, dict[str, list[float | None]]]


def table_of(values: Cells, title: str | None = None) -> pd.DataFrame:
    """Accuracies in percent of each cell's seeds on each recipe; None has diverged."""
    rows = [
        {
            "recipe": recipe,
            "panel": title or f"Panel {recipe}",
            "activation": activation,
            "method": method,
            "strength": float(strength),
            "seed": seed,
            "chance": CHANCE.get(recipe, 0.1),
            "test_accuracy": None if value is None else value / 100,
            "diverged": value is None,
        }
        for (activation, method, strength), recipes in values.items()
        for recipe, accuracies in recipes.items()
        for seed, value in enumerate(accuracies)
    ]
    return pd.DataFrame(rows)


def traces_of(values: dict[tuple, dict[str, list[tuple[float, float] | None]]]) -> pd.DataFrame:
    """Traces of G and N at the end of each cell's seeds, by two probes, among other values; None has diverged."""
    rows = []
    for (activation, method, strength), recipes in values.items():
        for recipe, traces in recipes.items():
            for seed, pair in enumerate(traces):
                place = {"recipe": recipe, "panel": f"Panel {recipe}", "activation": activation, "method": method}
                place |= {"strength": float(strength), "seed": seed, "quantity": "traces"}
                other = {"quantity": "squared_norms", "operator": "H", "at": 1.0, "probe": 0, "value": 1e6}
                rows += [place | {"operator": "H", "at": 0.0, "probe": 0, "value": -1e6}]
                if pair is not None:
                    ends = zip("GNH", (*pair, sum(pair)), strict=True)
                    ends = [(o, probe, v + sign) for o, v in ends for probe, sign in ((0, -1), (1, 1))]
                    rows += [place | {"operator": o, "at": 1.0, "probe": p, "value": v} for o, p, v in ends]
                    rows += [place | other]
    return pd.DataFrame(rows)


def contrast_of(plus: list, minus: list, expect: str = "positive", over: str | None = None, **more) -> dict:
    """A contrast whose terms are cells, or lists of cells."""
    terms = {
        side: [term if isinstance(term, list) else [term] for term in own]
        for side, own in (("plus", plus), ("minus", minus))
    }
    over = over or ("each" if expect in ("similar", "different") else "mean")
    return {"name": "difference", "expect": expect, "over": over, "trace": None, "figure": "t", **terms, **more}


def claim_of(*contrasts: dict, number: int = 1, recipes: tuple[str, ...] = ("one",)) -> dict:
    """A claim about these contrasts, on these recipes."""
    own = [{**contrast, "name": f"no. {i}"} for i, contrast in enumerate(contrasts)]
    words = {"number": number, "says": f"Claim {number}.", "figure": "fig2"}
    return {**words, "contrasts": own, "recipes": list(recipes)}


def spec_of(*claims: dict) -> dict:
    """The settings of the claims stage."""
    return {"scale": "tiny", "smallest_effect": SMALLEST, "claims": list(claims), "version": 1}


def differing(**differences: list[float | None]) -> pd.DataFrame:
    """A table where the penalty's accuracy differs from plain SGD's by so many points, by recipe; None diverged."""
    plain = {recipe: [60.0 + 3 * seed for seed in range(len(own))] for recipe, own in differences.items()}
    other = {
        recipe: [None if d is None else p + d for p, d in zip(plain[recipe], own, strict=True)]
        for recipe, own in differences.items()
    }
    return table_of({SGD: plain, PENALTY: other})
