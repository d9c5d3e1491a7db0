"""Specs of the stages claims and map, with the configuration's contrasts as lists of cells."""

from itertools import product

from nme.activations import ACTIVATIONS
from nme.config.fields import AXIS_IN_NAME
from nme.config.figure import Claim, Contrast, Map, SmallestEffect
from nme.config.project import Project
from nme.errors import NmeError, unknown
from nme.grid.cells import Cell, cells, expand, recipes_of
from nme.grid.paths import claims_of_map
from nme.grid.specs import (
    STAGE_VERSION,
    ClaimSpec,
    ClaimsSpec,
    ContrastSpec,
    MappedClaim,
    MapSpec,
    Setting,
    SharesSpec,
    Term,
    TraceSpec,
)


def term_cells(project: Project, figure: str, term: str) -> Term:
    """Expand a term of a contrast into distinct (activation, method, strength), valid in any recipe of the figure.

    A term is ``activation/method/axis`` or ``activation/sgd``; a comma separates alternatives.

    Raises:
        NmeError: the term has a different form, names an unknown axis, or is not among the figure's cells.
    """
    scale = project.scale
    parts = [part.split(",") for part in term.split("/")]
    if len(parts) not in (2, 3) or (len(parts) == 2 and parts[1] != ["sgd"]):
        raise NmeError(f"'{term}' is not a term (allowed: activation/method/axis, or activation/sgd)")
    unknown_axes = {a for a in [*AXIS_IN_NAME.findall(term), *(parts[2:] or [[]])[0]] if a not in scale.axes}
    if unknown_axes:
        known = unknown(f"axis of scale '{project.config.scale}'", min(unknown_axes), scale.axes)
        raise NmeError(f"'{term}': {known}")
    activations, methods = ([n for name in names for n in expand(name, scale.axes)] for names in parts[:2])
    strengths = [value for axis in parts[2] for value in scale.axes[axis]] if len(parts) == 3 else ["0"]
    found = []
    there = cells(project.figures[figure], scale)
    for combination in product(activations, methods, strengths):
        cell = Cell.of(there[0].recipe, *combination)
        if cell not in there:
            raise NmeError(f"'{term}': {figure} has no training {cell.activation}/{cell.method}/{cell.strength}")
        found.append((cell.activation, cell.method, cell.strength))
    return list(dict.fromkeys(found))


def claims_spec(project: Project, name: str) -> ClaimsSpec:
    """The spec of the claims table.

    Raises:
        NmeError: a claim's figure does not exist, has no grid, or lacks a training that a contrast names; the terms of
            a contrast do not pair up; two claims have the same number; or no recipe has all contrasts of a claim.
    """
    claims = project.figures[name].claims
    assert claims, "only figures with claims have this spec"
    numbers = [claim.number for claim in claims.list]
    duplicates = [n for n in numbers if numbers.count(n) > 1]
    if duplicates:
        raise NmeError(f"claims: more than one claim has the number {duplicates[0]} (each needs its own)")
    return ClaimsSpec(
        scale=project.config.scale,
        smallest_effect=SmallestEffect(**claims.smallest_effect.model_dump()),
        claims=[
            ClaimSpec(
                number=claim.number,
                says=claim.says,
                figure=claim.figure,
                contrasts=[_contrast_spec(project, c.figure or claim.figure, c) for c in claim.contrasts],
                recipes=_recipes(project, claim),
            )
            for claim in claims.list
        ],
        version=STAGE_VERSION["claims"],
    )


def map_spec(project: Project, name: str) -> MapSpec:
    """The spec of the map.

    A contrast that is tested cell by cell (``over`` each or any) enters with the mean over its cells, which are chosen
    beforehand. The best of several effects would be biased upwards, the more so the more seeds differ.

    Raises:
        NmeError: a claim is unknown, wrong, about traces or about similarity; the figure of the shares does not measure
            them on that activation during training; or a claim has no recipe in common with that figure.
    """
    chart, scale = project.figures[name].map, project.scale
    assert chart, "only figures with a map have this spec"
    try:
        recipes = _recipes_with_shares(project, chart)
        claims = [_mapped_claim(project, claim, recipes) for claim in claims_of_map(project, chart)]
    except NmeError as error:
        raise NmeError(f"{name}: {error}") from None
    used = {recipe for claim in claims for recipe in claim.recipes}
    smallest = next(f.claims.smallest_effect for f in project.figures.values() if f.claims)
    settings = {
        recipe: Setting(
            title=found.title or recipe,
            network=found.model.name,
            label_noise=scale.datasets[found.dataset].label_noise,
        )
        for recipe in recipes
        if recipe in used
        for found in [scale.recipes[recipe]]
    }
    return MapSpec(
        scale=project.config.scale,
        smallest_effect=smallest.points,
        claims=claims,
        shares=SharesSpec(figure=chart.shares, activation=chart.activation),
        recipes=settings,
        version=STAGE_VERSION["map"],
    )


def _recipes_with_shares(project: Project, chart: Map) -> list[str]:
    """The recipes on which the shares of a map are measured, in the order of the panels."""
    scale = project.scale
    able = {n: f.measure for n, f in project.figures.items() if f.measure and "update_shares" in f.measure.quantities}
    if chart.shares not in able:
        raise NmeError(f"map.shares: {unknown('figure with update_shares', chart.shares, able)}")
    figure = project.figures[chart.shares]
    plain = [cell for cell in cells(figure, scale) if cell.method == "sgd"]
    activations = sorted({cell.activation for cell in plain})
    if chart.activation not in activations:
        known = unknown(f"activation of '{chart.shares}' with plain SGD", chart.activation, activations)
        raise NmeError(f"map.activation: {known}")
    times = scale.axes[able[chart.shares].at]
    if not any(float(at) > 0 for at in times):
        raise NmeError(
            f"map.shares: '{chart.shares}' measures at {', '.join(times)} alone (allowed: an axis with a time after 0)"
        )
    return recipes_of(figure, scale)


def _mapped_claim(project: Project, claim: Claim, recipes: list[str]) -> MappedClaim:
    """Spec of a claim of the map, restricted to recipes with shares."""
    if any(contrast.trace for contrast in claim.contrasts):
        raise NmeError(f"map.claims: claim {claim.number} is about traces (allowed: claims about accuracies)")
    aimless = [contrast.expect for contrast in claim.contrasts if contrast.expect in ("similar", "different")]
    if aimless:
        raise NmeError(f"map.claims: claim {claim.number} expects '{aimless[0]}' (allowed: positive, not negative)")
    contrasts = []
    for contrast in claim.contrasts:
        found = _contrast_spec(project, contrast.figure or claim.figure, contrast)
        over = "trend" if found.over == "trend" else "mean"
        # Nothing is tested, so nothing is expected.
        contrasts.append(ContrastSpec(**(found.model_dump(exclude={"expect"}) | {"over": over})))
    common = [recipe for recipe in recipes if recipe in _recipes(project, claim)]
    if not common:
        raise NmeError(f"map.claims: claim {claim.number} has no recipe with shares (allowed: one or more)")
    return MappedClaim(number=claim.number, says=claim.says, contrasts=contrasts, recipes=common)


def _recipes(project: Project, claim: Claim) -> list[str]:
    """Recipes that all contrasts of a claim have, in the order of the first contrast's panels."""
    figures = [project.figures[contrast.figure or claim.figure] for contrast in claim.contrasts]
    panels = [recipes_of(figure, project.scale) for figure in figures]
    found = [recipe for recipe in panels[0] if all(recipe in others for others in panels)]
    if not found:
        raise NmeError(f"claims: claim {claim.number}: its contrasts have no recipe in common (allowed: one or more)")
    return found


def _contrast_spec(project: Project, figure: str, contrast: Contrast) -> ContrastSpec:
    figures = project.figures
    traced = {name: f.measure for name, f in figures.items() if f.measure and "traces" in f.measure.quantities}
    able = list(traced) if contrast.trace else [n for n, f in figures.items() if f.grid and not f.measure]
    try:
        if figure not in able:
            raise NmeError(unknown(f"figure with {'traces' if contrast.trace else 'accuracies'}", figure, able))
        terms = {side: [term_cells(project, figure, t) for t in getattr(contrast, side)] for side in ("plus", "minus")}
        over = contrast.over or ("each" if contrast.expect in ("similar", "different") else "mean")
        terms = _paired(terms, over)
        trace = None
        if contrast.trace:
            last = max(float(at) for at in project.scale.axes[traced[figure].at])
            trace = TraceSpec(operator=contrast.trace, at=last)
    except NmeError as error:
        raise NmeError(f"claims: contrast '{contrast.name}': {error}") from None
    return ContrastSpec(
        name=contrast.name,
        expect=contrast.expect,
        over=over,
        trace=trace,
        figure=figure,
        plus=terms["plus"],
        minus=terms["minus"],
    )


def _paired(terms: dict[str, list[Term]], over: str) -> dict[str, list[Term]]:
    """The terms of a contrast, after a check that their cells pair up; for a trend in ascending order.

    Raises:
        NmeError: their numbers of cells differ and are not 1; or a trend is not over one axis, the same for all terms.
    """
    every = [term for side in terms.values() for term in side]
    lengths = sorted({len(term) for term in every} - {1})
    if over in ("each", "any") and len(lengths) > 1:
        raise NmeError(
            f"over is '{over}', but its terms have {' and '.join(map(str, lengths))} cells"
            " (allowed: the same number, or 1)"
        )
    if over != "trend":
        return terms
    positions = {tuple(sorted(_positions(term))) for term in every}
    if len(positions) > 1:
        raise NmeError(
            "over is 'trend', but its terms are over different values (allowed: the same axis for all terms)"
        )
    return {side: [[cell for _, cell in sorted(_positions(t).items())] for t in own] for side, own in terms.items()}


def _positions(term: Term) -> dict[float, tuple[str, str, str]]:
    """Cells of a trend's term, by strength or by the one activation parameter that varies."""
    activations = [ACTIVATIONS.parse(activation) for activation, _, _ in term]
    methods = {method for _, method, strength in term if strength != "0"}
    by_strength = {float(cell[2]): cell for cell in term}
    found: dict[float, tuple[str, str, str]] = {}
    if len(set(map(str, activations))) == 1 and len(methods) <= 1:
        found = by_strength
    elif len({a.name for a in activations}) == 1 and len(by_strength) == 1 and len({cell[1] for cell in term}) == 1:
        varying = [key for key in activations[0].values if len({a.values[key] for a in activations}) > 1]
        if len(varying) == 1:
            found = {float(a.values[varying[0]]): cell for a, cell in zip(activations, term, strict=True)}
    if len(found) != len(term) or len(term) < 2:
        text = ", ".join("/".join(cell) for cell in term)
        raise NmeError(
            f"over is 'trend', but a term is {text} (allowed: two or more strengths, or two or more values of β)"
        )
    return found
