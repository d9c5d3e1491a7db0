"""Caption sentences that depend on the scale."""

from nme.config.fields import AXIS_IN_NAME
from nme.config.project import Project
from nme.grid.cells import cells
from nme.grid.claims import map_spec
from nme.grid.paths import figures_read


def scale_sentence(project: Project, name: str) -> str:
    """Caption sentence of a grid figure or a map: the values and seeds at this scale."""
    figure, scale = project.figures[name], project.scale
    numbers = sorted({scale.seeds_of(shown) for shown in figures_read(project, name) or [name]})
    seeds = f"{' or '.join(map(str, numbers))} seed{'s' if numbers[-1] > 1 else ''}"
    if figure.map:
        titles = [setting.title for setting in map_spec(project, name).recipes.values()]
        settings = "; ".join(f"({i}) {title}" for i, title in enumerate(titles, 1))
        return f"Settings: {settings}. {seeds}."
    if not figure.grid:
        return ""
    used = [*AXIS_IN_NAME.findall(" ".join([*figure.grid.activation, *figure.grid.method]))]
    used += [*figure.grid.method.values()]
    values = "; ".join(f"{axis} {', '.join(scale.axes[axis])}" for axis in dict.fromkeys(used))
    noisy = {
        f"{100 * dataset.label_noise:g} % of the training labels of '{name}' are random; test labels are clean."
        for recipe in scale.panels[figure.grid.panels]
        for name in [scale.recipes[recipe].dataset]
        for dataset in [scale.datasets[name]]
        if dataset.label_noise
    }
    return " ".join([f"Values: {values}. {seeds}; {len(cells(figure, scale))} combinations.", *sorted(noisy)])
