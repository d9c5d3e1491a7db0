"""Figure 2: the gradient penalty helps GELU more than ReLU."""

import pandas as pd
from matplotlib.figure import Figure

from nme.figures.curves import accuracy_against_strength


def draw(table: pd.DataFrame, spec: dict, record: dict) -> tuple[Figure, pd.DataFrame]:
    """Test accuracy against ρ, a line an activation, a panel a dataset."""
    return accuracy_against_strength(table, spec, record, "gradient penalty strength ρ (parameter units)")
