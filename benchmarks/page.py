"""Writes tables of benchmarks to their places in a page of docs/results, between two comments."""

from collections.abc import Sequence
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "results" / "speed.md"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def publish(name: str, text: str, page: Path | None) -> None:
    """Print a table and, if a page is given, write it to its place there.

    Raises:
        ValueError: the page has no place of this name.
    """
    print(f"\n### {name}\n\n{text}", flush=True)
    if page is None:
        return
    begin, end = f"<!-- {name} -->\n", "<!-- end -->"
    before, marker, rest = page.read_text().partition(begin)
    if not marker:
        msg = f"{page.name} has no place for {name!r}: expected {begin!r}"
        raise ValueError(msg)
    page.write_text(before + begin + "\n" + text + "\n\n" + end + rest.partition(end)[2])
