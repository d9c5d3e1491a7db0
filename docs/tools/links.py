"""Links of the pages, which are written for GitHub, as the site needs them (a hook of mkdocs).

Pages that lie outside docs/ join the site. A link to any other file of the project becomes one to the repository
(``repo_url`` in mkdocs.yml), or plain text while there is none. Sections of the theory that docstrings cite become
links.
"""

import os
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
# Pages of the project outside docs/, and their names in the site.
OUTSIDE = {"config/README.md": "configuration.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
INSIDE = {site: source for source, site in OUTSIDE.items()}
# Both the project's front page and the site's.
FRONT = {"README.md": "README.md"}


def on_files(files, config):
    """Add the pages from outside docs/."""
    for source, site in OUTSIDE.items():
        files.append(File.generated(config, site, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Rewrite relative links, but not those in blocks of code."""
    if page.parent is None:  # the only page of its tab
        page.meta["hide"] = ["navigation"]
    here = page.file.src_uri
    folder = (ROOT / INSIDE.get(here, f"docs/{here}")).parent

    def link(match: re.Match) -> str:
        bang, text, target = match.groups()
        path, hash_, anchor = target.partition("#")
        if not path or re.match(r"[a-z]+:", target):
            return match[0]
        goal = Path(os.path.normpath(folder / path)).relative_to(ROOT).as_posix()
        site = (OUTSIDE | FRONT).get(goal, goal.removeprefix("docs/") if goal.startswith("docs/") else None)
        if site and files.get_file_from_path(site):
            if text.endswith(".md") and path.endswith(text):  # a table of files on GitHub, of titles here
                text = title(INSIDE.get(site, f"docs/{site}"))
            return f"{bang}[{text}]({os.path.relpath(site, os.path.dirname(here) or '.')}{hash_}{anchor})"
        if config.repo_url:
            return f"{bang}[{text}]({config.repo_url.rstrip('/')}/blob/main/{goal}{hash_}{anchor})"
        return text if text.startswith("`") else f"{text} (`{goal}`)" if text != goal else f"`{goal}`"

    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    parts[::2] = [re.sub(r"(!?)\[([^\[\]]*)\]\(([^()\s]+)\)", link, part) for part in parts[::2]]
    return "".join(parts)


def title(source: str) -> str:
    """The first heading of a page of the project."""
    return re.search(r"^# (.+)$", (ROOT / source).read_text(encoding="utf-8"), re.MULTILINE)[1]


def sections() -> dict[str, str]:
    """The anchors of the theory's sections by their numbers: {'6.3': '63-...'}."""
    theory = (ROOT / "docs/theory.md").read_text(encoding="utf-8")
    found = re.findall(r"^#+ (([\d.]*\d)\.? .+)$", theory, re.MULTILINE)
    return {number: re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title, number in found}


def on_page_content(html, page, config, files):
    """Link ``docs/theory.md, §6.3`` of a docstring to its section."""
    if not page.file.src_uri.startswith("api/"):
        return html
    anchors = sections()
    return re.sub(
        r"docs/theory\.md, §([\d.]*\d)",
        lambda match: f'<a href="../../theory/#{anchors[match[1]]}">theory §{match[1]}</a>',
        html,
    )
