"""A figure, ``config/figures/*.yaml``: what it compares or measures, how it is drawn, or the claims it decides."""

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


class Grid(Closed):
    """The trainings a figure compares: every combination of its axes.

    A number in a name may be an axis of the scale in braces: ``beta_gelu-beta={beta}`` is one activation a value.
    """

    panels: Identifier = Field(description="Name of a list of recipes of the scale.")
    activation: Annotated[list[templates(ACTIVATIONS)], Field(min_length=1), Names]
    method: Annotated[dict[templates(METHODS), Identifier], Field(min_length=1), BeforeValidator(distinct_methods)] = (
        Field(
            description="Each training method with the axis of its strengths; strength 0 of any of them is plain SGD."
        )
    )


class Curves(Closed):
    """How a grid is drawn: a line of mean accuracies with an interval over seeds against a strength or a parameter."""

    x: str = Field("strength", description="strength, or the activation's parameter along the axis, as in 'beta'.")
    x_label: str = Field(description="Below the axis: what it is, its symbol and its unit.")
    lines: Literal["activation", "method"] = Field(description="What a line is, and has its colour.")
    columns: Literal["recipe", "activation", "split"] = Field(
        "recipe",
        description="Panels side by side: recipes; or a row a recipe, and a column an activation, or train and test.",
    )
    groups: list[list[templates(ACTIVATIONS)]] = Field(
        [], description="Instead of columns: a row a recipe, and a column each of these groups of activations."
    )

    @model_validator(mode="after")
    def _one_division(self) -> "Curves":
        if self.groups and self.columns != "recipe":
            raise ValueError("give 'columns' or 'groups', not both")
        return self


class Measured(Closed):
    """What is measured on the networks of a grid while they train."""

    at: Identifier = Field(description="Name of an axis: when, as fractions of the training, 0 to 1.")
    quantities: Annotated[list[one_of("quantity", QUANTITIES)], Field(min_length=1), Names] = Field(
        description="What is measured; src/nme/quantities.py describes each."
    )


class Landscape(Closed):
    """An exact loss landscape over two weights of one hidden layer; nothing is trained."""

    activation: Annotated[list[registered(ACTIVATIONS)], Field(min_length=1), Names]
    widths: Annotated[list[Count], Field(min_length=2), AfterValidator(two_by_two)] = Field(
        description="Inputs, then hidden units."
    )
    points: Annotated[int, Field(ge=3)] = Field(description="Grid points along each of the two weights.")
    half_width: PositiveFloat = Field(description="Both weights run over ± this.")
    seed: NonNegativeInt = Field(description="Seed of the other weights, the input and the target.")


class Contrast(Closed):
    """A difference of test accuracies, in points: the sum of ``plus`` minus the sum of ``minus``.

    A term is ``activation/method/axis``: a cell for each strength of that axis; or ``activation/sgd``. A comma
    separates alternatives, as in ``relu,gelu/sam/rho``: a cell for each. ``sgd,grad_norm`` puts plain SGD first.
    """

    name: str = Field(description="What the difference is, for the table.")
    figure: Identifier | None = Field(None, description="Whose trainings, if not the claim's figure's.")
    trace: Operator | None = Field(
        None, description="Instead of accuracies: its trace at the end, in percent of tr G + |tr N|, where measured."
    )
    plus: list[str] = Field([], description="Terms that are added.")
    minus: list[str] = Field([], description="Terms that are subtracted.")
    expect: Literal["positive", "similar", "different", "not negative"] = Field(
        description="What the claim says of it."
    )
    over: Literal["mean", "each", "any", "trend"] | None = Field(
        None,
        description="How the cells of its terms enter. mean: averaged. each: all cells, each by itself, are as"
        " expected. any: one cell is. trend: the fitted change from the first to the last strength or β. null: mean;"
        " each if similar or different is expected.",
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
    """Smallest effects of interest, δ: smaller ones do not count as a difference."""

    points: PositiveFloat = Field(1, description="Of accuracies, in points.")
    percent: PositiveFloat = Field(5, description="Of traces, in percent of tr G + |tr N|.")


class Claim(Closed):
    """One claim of the paper; it holds on a recipe if all its contrasts are as expected there."""

    number: Count = Field(description="Its number in the paper's list.")
    says: str = Field(description="The claim, in a sentence.")
    figure: Identifier = Field(description="The figure whose trainings bear on it.")
    contrasts: Annotated[list[Contrast], Field(min_length=1)] = Field(description="The differences it is about.")


class Claims(Closed):
    """The claims, and what counts as a difference."""

    smallest_effect: SmallestEffect = Field(SmallestEffect(), description="Smallest effects of interest.")
    list: Annotated[list[Claim], Field(min_length=1, description="The claims, in the order of the table.")]


class Map(Closed):
    """Effects of claims over the recipes of a scale, against the share of the NME in the penalty's update.

    A setting of the map is a recipe that the figures of its claims and the figure of its shares have in common.
    """

    claims: Annotated[list[Count], Field(min_length=1), Names] = Field(
        description="Numbers of claims about accuracies; a panel per contrast."
    )
    shares: Identifier = Field(description="The figure that measures update_shares of plain SGD.")
    activation: registered(ACTIVATIONS) = Field("gelu", description="The activation whose shares are taken.")


class Figure(Closed):
    """One figure: what it compares, how it is drawn and captioned.

    Without ``curves`` the drawing is ``src/nme/figures/drawings/<name>.py``.
    """

    kind: Literal["paper", "supplementary", "claims"] = Field(
        description="A figure of the paper, one of ours, or the claims."
    )
    title: str = Field(description="A short title, for the report.")
    caption: str = Field(description="What the figure shows and the claim it bears on, for the report.")
    grid: Grid | None = Field(None, description="Trainings it is made of.")
    curves: Curves | None = Field(None, description="How the accuracies of the grid are drawn.")
    measure: Measured | None = Field(None, description="What is measured on the grid's networks.")
    landscape: Landscape | None = Field(None, description="An exact landscape it is made of.")
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
