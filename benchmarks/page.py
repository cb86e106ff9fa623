"""A table of a benchmark -> its place in a page of docs/results, between two comments."""

from collections.abc import Sequence
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "results" / "speed.md"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def publish(name: str, text: str, page: Path | None) -> None:
    """Print a table and, where there is a page, write it to its place there."""
    print(f"\n### {name}\n\n{text}", flush=True)
    if page is None:
        return
    begin, end = f"<!-- {name} -->\n", "<!-- end -->"
    before, found, rest = page.read_text().partition(begin)
    if not found:
        msg = f"{page.name} has no place for {name!r}: expected {begin!r}"
        raise ValueError(msg)
    page.write_text(before + begin + "\n" + text + "\n\n" + end + rest.partition(end)[2])
