"""Tables in docs/benchmarks.md and other pages, each between its own markers."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"


def replace_section(name: str, text: str, page: Path = PAGE) -> None:
    """Put the text between ``<!-- name -->`` and the next ``<!-- end -->``; the page must have them."""
    before, _, rest = page.read_text(encoding="utf-8").partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition("<!-- end -->\n")
    if not end:
        raise SystemExit(f"{page}: has no section '{name}' (<!-- {name} --> … <!-- end -->)")
    page.write_text(f"{before}<!-- {name} -->\n{text}\n{end}{after}", encoding="utf-8")


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A table; the first column is text, the others are numbers."""
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def milliseconds(seconds: float) -> str:
    """For a reader: three digits, or whole milliseconds.

    >>> milliseconds(0.001234), milliseconds(1.2345)
    ('1.23 ms', '1234 ms')
    """
    return f"{1e3 * seconds:.3g} ms" if seconds < 0.1 else f"{1e3 * seconds:.0f} ms"


def processor() -> str:
    """What the system calls the CPU; empty if it does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
