"""MathJax, from a Python package instead of a server elsewhere (a hook of mkdocs). GitHub renders with it, too."""

from pathlib import Path

import mathjax  # the package django-static-mathjax; it does not need Django
from mkdocs.structure.files import File

OPTIONS = r"""
window.MathJax = {
  tex: {inlineMath: [["\\(", "\\)"]], displayMath: [["\\[", "\\]"]]},
  options: {ignoreHtmlClass: ".*", processHtmlClass: "arithmatex", enableMenu: false},
};
"""


def on_files(files, config):
    """Add MathJax with SVG output, which needs no fonts."""
    script = Path(mathjax.__file__).parent / "static/mathjax/es5/tex-svg.js"
    files.append(File.generated(config, "assets/mathjax.js", abs_src_path=str(script)))
    files.append(File.generated(config, "assets/mathjax-options.js", content=OPTIONS))
    return files
