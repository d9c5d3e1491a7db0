"""A figure, ``config/figures/*.yaml``: its comparison or measurement and its drawing, or the claims that it decides."""

from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    model_validator,
)

from nme.activations import ACTIVATIONS
from nme.config.fields import (
    Closed,
    Identifier,
    Names,
    Operator,
    distinct_methods,
    one_of,
    registered,
    templates,
    two_by_two,
)
from nme.methods import METHODS
from nme.models.settings import Count
from nme.quantities import QUANTITIES

# Drawings of their own, modules of nme.figures.drawings; any other figure has curves.
DRAWINGS = ("claims", "fig1", "fig6", "map", "mechanism", "spectrum", "traces")


class Grid(Closed):
    """The trainings that a figure compares: every combination of its axes.

    A number in a name may be an axis of the scale in braces: ``beta_gelu-beta={beta}`` is one activation per value.
    """

    panels: Identifier = Field(description="Name of a list of recipes of the scale.")
    activation: Annotated[list[Annotated[str, templates(ACTIVATIONS)]], Field(min_length=1), Names]
    method: Annotated[
        dict[Annotated[str, templates(METHODS)], Identifier], Field(min_length=1), BeforeValidator(distinct_methods)
    ] = Field(
        description="Each training method with the axis of its strengths; strength 0 of any of them is plain SGD."
    )


class Curves(Closed):
    """The drawing of a grid: lines of mean accuracies, with intervals over seeds, against a strength or a parameter."""

    x: str = Field("strength", description="strength, or the activation's parameter along the axis, as in 'beta'.")
    x_label: str = Field(description="Label of the axis: name, symbol and unit.")
    lines: Literal["activation", "method"] = Field(description="One line per activation, or per method, in its colour.")
    columns: Literal["recipe", "activation", "split"] = Field(
        "recipe",
        description="Panels side by side: recipes; or one row per recipe, with one column per activation, or with"
        " columns for train and test.",
    )
    groups: list[list[Annotated[str, templates(ACTIVATIONS)]]] = Field(
        [], description="Instead of columns: one row per recipe, and one column per group of activations."
    )

    @model_validator(mode="after")
    def _one_division(self) -> "Curves":
        if self.groups and self.columns != "recipe":
            raise ValueError("give 'columns' or 'groups', not both")
        return self


class Measured(Closed):
    """Quantities measured on the networks of a grid during training."""

    at: Identifier = Field(description="Name of an axis with the times, as fractions of the training, 0 to 1.")
    quantities: Annotated[list[Annotated[str, one_of("quantity", QUANTITIES)]], Field(min_length=1), Names] = Field(
        description="Measured quantities; src/nme/quantities.py describes each."
    )


class Landscape(Closed):
    """An exact loss landscape over two weights of one hidden layer; nothing is trained."""

    activation: Annotated[list[Annotated[str, registered(ACTIVATIONS)]], Field(min_length=1), Names]
    widths: Annotated[list[Count], Field(min_length=2), AfterValidator(two_by_two)] = Field(
        description="Inputs, then hidden units."
    )
    points: Annotated[int, Field(ge=3)] = Field(description="Grid points along each of the two weights.")
    half_width: PositiveFloat = Field(description="Both weights run from − half_width to + half_width.")
    seed: NonNegativeInt = Field(description="Seed of the other weights, the input and the target.")


class Contrast(Closed):
    """A difference of test accuracies, in points: the sum of ``plus`` minus the sum of ``minus``.

    A term is ``activation/method/axis``, with one cell per strength on the axis, or ``activation/sgd``. A comma
    separates alternatives, as in ``relu,gelu/sam/rho``: one cell for each. ``sgd,grad_norm`` puts plain SGD first.
    """

    name: str = Field(description="Description of the difference, for the table.")
    figure: Identifier | None = Field(None, description="Figure with the trainings; null: the claim's figure.")
    trace: Operator | None = Field(
        None, description="Compare this operator's trace at the end, in percent of tr G + |tr N|, not accuracies."
    )
    plus: list[str] = Field([], description="Terms that are added.")
    minus: list[str] = Field([], description="Terms that are subtracted.")
    expect: Literal["positive", "similar", "different", "not negative"] = Field(
        description="Expected sign or size, according to the claim."
    )
    over: Literal["mean", "each", "any", "trend"] | None = Field(
        None,
        description="Use of the terms' cells. mean: average them. each: every single cell must be as expected. any: at"
        " least one cell must be. trend: fit the change from the first to the last strength or β. null: mean; each if"
        " similar or different is expected.",
    )

    @model_validator(mode="after")
    def _some_term(self) -> "Contrast":
        if not self.plus and not self.minus:
            raise ValueError("give a term in 'plus' or 'minus'")
        return self

    @model_validator(mode="after")
    def _similar_is_each(self) -> "Contrast":
        if self.expect in ("similar", "different") and self.over not in (None, "each"):
            raise ValueError(f"over is '{self.over}' (allowed with expect '{self.expect}': each)")
        return self


class SmallestEffect(Closed):
    """Smallest effects of interest, δ: smaller effects do not count as a difference."""

    points: PositiveFloat = Field(1.0, description="Of accuracies, in points.")
    percent: PositiveFloat = Field(5.0, description="Of traces, in percent of tr G + |tr N|.")


class Claim(Closed):
    """One claim of the paper; a claim holds on a recipe if all its contrasts there are as expected."""

    number: Count = Field(description="Number of the claim in the paper's list.")
    says: str = Field(description="The claim, in one sentence.")
    figure: Identifier = Field(description="Figure with the trainings that test the claim.")
    contrasts: Annotated[list[Contrast], Field(min_length=1)] = Field(description="Differences in the claim.")


class Claims(Closed):
    """The claims, and the smallest effects that count as a difference."""

    smallest_effect: SmallestEffect = Field(SmallestEffect(), description="Smallest effects of interest.")
    list: Annotated[list[Claim], Field(min_length=1, description="The claims, in the order of the table.")]


class Map(Closed):
    """Effects of claims over the recipes of a scale, against the share of the NME in the penalty's update.

    A setting of the map is a recipe in both the figures of its claims and the figure of its shares.
    """

    claims: Annotated[list[Count], Field(min_length=1), Names] = Field(
        description="Numbers of claims about accuracies; one panel per contrast."
    )
    shares: Identifier = Field(description="The figure that measures update_shares of plain SGD.")
    activation: Annotated[str, registered(ACTIVATIONS)] = Field(
        "gelu", description="The activation whose shares are taken."
    )


class Figure(Closed):
    """One figure: its data, drawing and caption.

    Without ``curves`` the drawing is ``src/nme/figures/drawings/<name>.py``.
    """

    kind: Literal["paper", "supplementary", "claims"] = Field(
        description="A figure of the paper, one of ours, or the claims."
    )
    title: str = Field(description="A short title, for the report.")
    caption: str = Field(description="Content of the figure and the claim that it tests, for the report.")
    grid: Grid | None = Field(None, description="Trainings that the figure compares.")
    curves: Curves | None = Field(None, description="Drawing of the grid's accuracies.")
    measure: Measured | None = Field(None, description="Measurement on the grid's networks.")
    landscape: Landscape | None = Field(None, description="Exact landscape that the figure shows.")
    claims: Claims | None = Field(None, description="Claims about the other figures' trainings.")
    map: Map | None = Field(None, description="Effects of claims over recipes, against shares of the NME.")

    @model_validator(mode="after")
    def _one_source(self) -> "Figure":
        if sum(source is not None for source in (self.grid, self.landscape, self.claims, self.map)) != 1:
            raise ValueError("give exactly one of 'grid', 'landscape', 'claims' and 'map'")
        for key in ("curves", "measure"):
            if getattr(self, key) and not self.grid:
                raise ValueError(f"'{key}' needs 'grid'")
        if self.curves and self.measure:
            raise ValueError("'curves' draws accuracies: give it or 'measure'")
        return self
