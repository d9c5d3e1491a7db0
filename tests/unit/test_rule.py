"""Level and power of the whole rule, by simulation and by integration; docs/science.md prints the power."""

import re
from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import chi, norm, t

from nme.claims.contrasts import effects_of
from nme.claims.statistics import Diverged, combine, combine_contrasts, judge, verdicts
from nme.config.project import load_project
from nme.grid.claims import claims_spec

ROOT = Path(__file__).parents[2]
DELTA, FAR, RECIPES = 1.0, 50.0, 2
PAIRS = 23  # of the table of powers: twelve claims on two recipes, claim 10 on one
SPREADS, SEEDS = (0.5, 2, 8), (5, 15)  # standard deviation of a paired difference in points, as measured


def shipped() -> list[list[tuple[str, str, int]]]:
    """The claims as they are configured: expectation, ``over`` and number of effects of each of their contrasts."""
    spec = claims_spec(load_project({"scale": "laptop"}, ROOT / "config"), "claims")
    return [[(c.expect, c.over, len(effects_of(c))) for c in claim.contrasts] for claim in spec.claims]


def truths(contrasts: list[tuple[str, str, int]], favour: bool) -> list[list[float | None]]:
    """The effects for which a wrong verdict is most likely; None is one that is known to be as expected.

    For a wrong 'supported' one effect is where its expectation just fails, and all others are clearly as expected;
    where one effect is enough, all of them just fail. For a wrong 'not supported' all just hold; where all have to
    fail, one just holds and the others clearly fail.
    """
    found = []
    for i, (expect, over, number) in enumerate(contrasts):
        fails = {"positive": 0.0, "similar": DELTA, "different": 0.0, "not negative": -DELTA}[expect]
        holds = {"positive": DELTA, "similar": DELTA, "different": DELTA, "not negative": -DELTA}[expect]
        if favour and over == "any":
            found.append([fails] * number)
        elif favour:
            found.append([fails if i == 0 and k == 0 else None for k in range(number)])
        elif over == "any":
            found.append([holds, *[-FAR] * (number - 1)])
        else:
            found.append([holds] * number)
    return found


def decided(random, claims, favour: bool, spread: float, seeds: int, risk: float) -> tuple[bool, bool]:
    """Return two booleans: a claim is decided wrongly anywhere, by the rule and without its corrections."""
    pairs = []
    for contrasts in claims * RECIPES:
        found = []
        for (expect, over, _), effects in zip(contrasts, truths(contrasts, favour), strict=True):
            judged = []
            for effect in effects:
                if effect is None:
                    mean = 0.0 if expect == "similar" else FAR
                    values, lost = random.normal(mean, 0.01, seeds), np.zeros((2, seeds), bool)
                else:
                    values, lost = random.normal(effect, spread, seeds), random.random((2, seeds)) < risk
                values[lost.any(axis=0)] = np.nan
                judged.append(judge(values, expect, DELTA, Diverged(*lost.sum(axis=1), seeds)))
            found.append(combine(judged, over)[:2])
        pairs.append(combine_contrasts([p for p, _ in found], [against for _, against in found]))
    wrong = "supported" if favour else "not supported"
    alone = any((p if favour else against) <= 0.05 for p, against in pairs)
    return any(v == wrong for *_, v in verdicts(*map(list, zip(*pairs, strict=True)))), alone


@pytest.mark.slow
@pytest.mark.parametrize("favour", [True, False], ids=["for", "against"])
def test_a_wrong_verdict_anywhere_has_at_most_5_percent(favour):
    random, claims, repeats = np.random.default_rng(0), shipped(), 120
    rates, uncorrected = {}, []
    for spread in SPREADS:
        for seeds in SEEDS:
            for risk in (0.0, 0.15) if spread == 2 else (0.0,):
                found = [decided(random, claims, favour, spread, seeds, risk) for _ in range(repeats)]
                rates[spread, seeds, risk] = np.mean([by_rule for by_rule, _ in found])
                uncorrected += [alone for _, alone in found]
    # Three standard errors of the simulation.
    assert max(rates.values()) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / repeats), rates
    assert np.mean(list(rates.values())) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / repeats / len(rates)), rates
    # The simulation can fail: without a correction most sets of claims have a wrong verdict.
    assert np.mean(uncorrected) > 0.3
    assert max(rates.values()) > 0.01


# -------------------------------------------------------------------- power


def power(effect: float, spread: float, seeds: int, expect: str = "positive") -> float:
    """The probability of 'supported' for one claim of one contrast, while no other verdict of the table is reached.

    Given the sample's standard deviation s, its mean is normal; s is spread·χ/√(n − 1).
    """
    critical, root = t.ppf(1 - 0.05 / PAIRS, seeds - 1), np.sqrt(seeds)

    def given(x: float) -> float:
        reach = critical * spread * x / np.sqrt(seeds - 1) / root
        if expect == "positive":
            return norm.sf((max(DELTA, reach) - effect) * root / spread)
        ends = [(sign * max(0.0, DELTA - reach) - effect) * root / spread for sign in (1, -1)]
        return norm.cdf(ends[0]) - norm.cdf(ends[1])

    return quad(lambda x: given(x) * chi.pdf(x, seeds - 1), 0, np.inf, epsabs=1e-5, epsrel=1e-5)[0]


def printed() -> dict[tuple[str, int], list[int]]:
    """The rows of the table of powers in docs/science.md: (effect, seeds) → percents."""
    text = (ROOT / "docs/science.md").read_text()
    rows = re.findall(r"^\| (positive, [\d.]+|similar, 0) \| (\d+) \|(.+)\|$", text, re.MULTILINE)
    return {(effect, int(seeds)): [int(v) for v in cells.split("|")] for effect, seeds, cells in rows}


SD_OF_TABLE = (0.5, 1, 2, 3, 5, 8)


def test_the_documented_powers_are_those_of_the_rule():
    table = printed()
    assert len(table) == 10
    assert {seeds for _, seeds in table} == set(SEEDS)
    for (effect, seeds), percents in table.items():
        expect, value = effect.split(", ")
        expected = [100 * power(float(value), sd, seeds, expect) for sd in SD_OF_TABLE]
        assert percents == [round(p) for p in expected], (effect, seeds)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize(("expect", "effect"), [("positive", 2), ("positive", 5), ("similar", 0)])
def test_power_by_simulation(seeds, expect, effect):
    random, repeats = np.random.default_rng(1), 2000
    for spread in (0.5, 2):
        samples = random.normal(effect, spread, (repeats, seeds))
        p = [judge(values, expect, DELTA)["p"] for values in samples]
        rest = [1.0] * (PAIRS - 1)
        found = np.mean([verdicts([x, *rest], [1.0] * PAIRS)[0][2] == "supported" for x in p])
        expected = power(effect, spread, seeds, expect)
        assert abs(found - expected) <= 3.5 * np.sqrt(max(0, expected * (1 - expected)) / repeats) + 1e-3
