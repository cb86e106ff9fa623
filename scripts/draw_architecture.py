"""Draw docs/architecture.svg: the rooms of both packages in their layers, and the imports between them.

The rooms and arrows come from the code's import statements; only the places, captions and routes are chosen here. An
arrow that follows from others (a imports b, b imports c, a imports c) is left out. Run after a room or an import between
rooms has changed: `python scripts/draw_architecture.py`.
"""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
PICTURE: Final = ROOT / "docs" / "architecture.svg"
PACKAGES: Final = ("service", "model_training")

GROUND: Final = ("service.errors", "service.names", "service.schemas", "service.settings", "service.volume")
"""Modules that every room may import; they are drawn as the ground, without arrows."""

LEFT_OUT: Final = ("service.__main__", "service.__version__")
"""The entry point of `python -m service`, and the version, which is no module."""

WIDTH, HEIGHT, PITCH, RADIUS = 1000, 978, 80, 9
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Box:
    """A room in the picture: its place in pixels, its colour group, its caption and the stages that it holds."""

    x: float
    row: float
    width: float
    group: str
    caption: str
    stages: tuple[str, ...] = ()
    height: float = 52

    @property
    def y(self) -> float:
        """Top edge."""
        return 64 + self.row * PITCH

    def side(self, name: str, at: float = 0.5) -> Point:
        """Return the point of an edge ("left", "right", "top", "bottom") at a fraction of its length."""
        if name in {"top", "bottom"}:
            return self.x + at * self.width, self.y + (self.height if name == "bottom" else 0)
        return self.x + (self.width if name == "right" else 0), self.y + at * self.height


ROOMS: Final[dict[str, Box]] = {
    "service.commands": Box(232, 0, 168, "door", "serve, predict, batch, ..."),
    "service.client": Box(448, 0, 140, "door", "Client, AsyncClient"),
    "service.app": Box(232, 1, 168, "door", "puts the service together"),
    "service.api": Box(232, 2, 168, "door", "HTTP routes"),
    "service.jobs": Box(232, 3, 168, "work", "durable queues, retention"),
    "service.pacs": Box(28, 4, 150, "work", "DICOMweb and DIMSE"),
    "service.executors": Box(232, 4, 168, "work", "processes that compute"),
    "service.derived": Box(232, 5, 168, "compute", "computed later, on request"),
    "service.pipeline": Box(
        192, 6, 248, "compute", "scan in, mask and confidence out", ("locate", "preprocess", "infer", "calibrate"), 70
    ),
    "service.result": Box(232, 7.24, 168, "data", "what a result is made of", ("encode", "store"), 70),
    "service.engines": Box(448, 7.24, 140, "compute", "torch, OpenVINO"),
    "service.storage": Box(28, 8.52, 130, "data", "files, API keys"),
    "service.intake": Box(172, 8.52, 130, "data", "bytes to a volume", ("decode",), 70),
    "service.bundle": Box(316, 8.52, 130, "data", "model and card"),
    "service.observability": Box(460, 8.52, 136, "data", "logs and metrics"),
    "service.calibration": Box(316, 9.6, 130, "data", "maths, numpy only"),
    "model_training.cli": Box(764, 0, 112, "train", "calibrant train ..."),
    "model_training.comparison": Box(656, 1, 110, "train", "loss beside loss"),
    "model_training.export": Box(774, 1, 92, "train", "bundles"),
    "model_training.recipes": Box(874, 1, 94, "train", "by data set"),
    "model_training.evaluation": Box(656, 2, 210, "train", "scores, reports, temperatures"),
    "model_training.locator": Box(874, 2, 94, "train", "landmarks"),
    "model_training.training": Box(656, 3, 312, "train", "the loop, checkpoints, several processes"),
    "model_training.config": Box(656, 4, 150, "train", "what a recipe says"),
    "model_training.losses": Box(818, 4, 150, "train", "mL1-ACE"),
    "model_training.data": Box(656, 5, 150, "train", "layouts, folds, patches"),
}

STAGES: Final = {
    "decode": "file to volume, in a sandbox",
    "locate": "boxes about the anatomy",
    "preprocess": "the network's grid",
    "infer": "windows to logits",
    "calibrate": "mask and confidence",
    "encode": "files on the scan's grid",
    "store": "published by one rename",
}

COLOURS: Final = {
    "door": ("#e7f0fb", "#3b78b8"),
    "work": ("#efe9f9", "#7456b3"),
    "compute": ("#e4f4ec", "#2f8a60"),
    "data": ("#fcf2dc", "#b07d14"),
    "train": ("#fbe9ec", "#b84a62"),
}

Route = tuple[tuple[str, float], tuple[str, float], tuple[float, ...]]
STRAIGHT: Final[Route] = (("bottom", 0.5), ("top", 0.5), ())
ROUTES: Final[dict[tuple[str, str], Route]] = {
    ("service.commands", "service.client"): (("right", 0.5), ("left", 0.5), ()),
    ("service.jobs", "service.pacs"): (("left", 0.5), ("top", 0.5), ()),
    ("service.pacs", "service.storage"): (("bottom", 0.3), ("top", 45 / 130), ()),
    ("service.pacs", "service.intake"): (("bottom", 0.88), ("top", 0.18), (8.1,)),
    ("service.pacs", "service.bundle"): (("right", 0.62), ("top", 0.18), (185, 7.06, 424, 8.32)),
    ("service.executors", "service.observability"): (("right", 0.36), ("top", 0.93), (606, 8.32)),
    ("service.pipeline", "service.engines"): (("right", 0.8), ("top", 0.5), ()),
    ("service.engines", "service.bundle"): (("bottom", 0.1), ("top", 0.85), (8.2,)),
    ("service.result", "service.storage"): (("bottom", 0.12), ("top", 0.7), (8.34,)),
    ("service.result", "service.intake"): (("bottom", 0.3), ("top", 110.4 / 130), ()),
    ("service.result", "service.bundle"): (("bottom", 0.825), ("top", 0.42), ()),
    ("model_training.cli", "model_training.comparison"): (("left", 0.5), ("top", 0.5), ()),
    ("model_training.cli", "model_training.recipes"): (("right", 0.5), ("top", 0.5), ()),
    ("model_training.comparison", "model_training.evaluation"): (("bottom", 0.5), ("top", 55 / 210), ()),
    ("model_training.export", "model_training.evaluation"): (("bottom", 0.5), ("top", 164 / 210), ()),
    ("model_training.export", "model_training.locator"): (("bottom", 0.86), ("top", 0.22), ()),
    ("model_training.recipes", "model_training.locator"): (("bottom", 0.62), ("top", 0.62), ()),
    ("model_training.evaluation", "model_training.training"): (("bottom", 0.5), ("top", 105 / 312), ()),
    ("model_training.evaluation", "service.derived"): (("left", 0.36), ("right", 0.5), (424,)),
    ("model_training.locator", "model_training.training"): (("bottom", 0.5), ("top", 265 / 312), ()),
    ("model_training.training", "model_training.config"): (("bottom", 0.24), ("top", 0.5), ()),
    ("model_training.training", "model_training.losses"): (("bottom", 0.76), ("top", 0.5), ()),
    ("model_training.data", "service.pipeline"): (("bottom", 0.5), ("right", 0.5), ()),
}
"""From which edge to which, and coordinates between (x where the line then runs down, rows where it runs across)."""


def room_of(module: str) -> str | None:
    """Return the room of a module: its package's subfolder, or the module itself where it lies at the top."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] in PACKAGES and len(parts) > 1 else None


def imports() -> set[tuple[str, str]]:
    """Return every pair of rooms of which the first imports from the second."""
    pairs = set()
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            importer = room_of(module)
            for imported in map(room_of, _imported(module, ast.parse(file.read_text()))):
                if importer and imported and importer != imported:
                    pairs.add((importer, imported))
    return {pair for pair in pairs if not set(pair) & {*LEFT_OUT, *(f"{package}.__init__" for package in PACKAGES)}}


def _imported(module: str, tree: ast.Module) -> Iterator[str]:
    """Yield every name that a module imports in full, the relative ones resolved."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def arrows(pairs: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the imports that follow from no others, the ground's left out."""
    targets: dict[str, set[str]] = {}
    for importer, imported in pairs:
        if imported not in GROUND and importer not in GROUND:
            targets.setdefault(importer, set()).add(imported)

    def reached(room: str) -> set[str]:
        return {room}.union(*(reached(target) for target in targets.get(room, ())))

    return sorted(
        (importer, imported)
        for importer, direct in targets.items()
        for imported in direct
        if not any(imported in reached(other) for other in direct - {imported})
    )


def draw(pairs: set[tuple[str, str]]) -> str:
    """Return the picture as SVG.

    Raises:
        ValueError: a room of the code has no place in `ROOMS`, or a place there has no room.
    """
    rooms = {room for pair in pairs for room in pair} - set(GROUND)
    if odd := sorted(rooms ^ ROOMS.keys()):
        msg = f"ROOMS of {Path(__file__).name} and the folders of the code differ in {', '.join(odd)}."
        raise ValueError(msg)
    body = [
        *_panels(),
        *(_arrow(*pair) for pair in arrows(pairs)),
        *(line for name, box in ROOMS.items() for line in _room(name, box)),
        *_ground(),
    ]
    title = "Calibrant: the rooms of service and model_training, and what imports what"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}" '
        'font-family="Helvetica, Arial, sans-serif">\n'
        f"<title>{title}</title>\n"
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
        'orient="auto-start-reverse"><path d="M0 0.8 9.5 5 0 9.2z" fill="#5b6572"/></marker></defs>\n'
        + "\n".join(body)
        + "\n</svg>\n"
    )


def _panels() -> list[str]:
    return [
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="14" fill="#ffffff"/>',
        '<rect x="12" y="12" width="610" height="888" rx="12" fill="#f8fafc" stroke="#d9e0e8"/>',
        '<rect x="638" y="12" width="350" height="524" rx="12" fill="#fffafb" stroke="#efd9dd"/>',
        _text(28, 38, "service", 17, "#263442", weight=700),
        _text(656, 38, "model_training", 17, "#263442", weight=700),
        *_way_of_a_scan(),
    ]


def _way_of_a_scan() -> list[str]:
    lines = [_text(656, 632, "The path of a scan", 15, "#263442", weight=700)]
    for number, (stage, does) in enumerate(STAGES.items(), start=1):
        y = 636 + 28 * number
        (group,) = {box.group for box in ROOMS.values() if stage in box.stages}
        lines += [
            f'<rect x="656" y="{y - 15}" width="84" height="20" rx="10" fill="{COLOURS[group][1]}"/>',
            _text(698, y - 1, stage, 12, "#ffffff", anchor="middle"),
            _text(750, y - 1, does, 12, "#46525f"),
        ]
    return lines


def _room(name: str, box: Box) -> list[str]:
    fill, stroke = COLOURS[box.group]
    middle = box.x + box.width / 2
    frame = (
        f'<rect x="{box.x:g}" y="{box.y:g}" width="{box.width:g}" height="{box.height:g}" rx="8" fill="{fill}" '
        f'stroke="{stroke}" stroke-width="1.3"/>'
    )
    lines = [
        frame,
        _text(middle, box.y + 22, name.partition(".")[2], 14.5, "#1f2933", weight=700, anchor="middle"),
        _text(middle, box.y + 39, box.caption, 11, "#46525f", anchor="middle"),
    ]
    widths = [13 + 5.7 * len(stage) for stage in box.stages]
    x = middle - (sum(widths) + 4 * (len(widths) - 1)) / 2
    for stage, width in zip(box.stages, widths, strict=True):
        lines += [
            f'<rect x="{x:.1f}" y="{box.y + 47:g}" width="{width:.1f}" height="16" rx="8" fill="{stroke}"/>',
            _text(x + width / 2, box.y + 58.6, stage, 10.5, "#ffffff", anchor="middle"),
        ]
        x += width + 4
    return lines


def _arrow(importer: str, imported: str) -> str:
    start, end, between = ROUTES.get((importer, imported), STRAIGHT)
    first, last = ROOMS[importer].side(*start), ROOMS[imported].side(*end)
    points = [first, *_corners(first, last, start[0], end[0], between), last]
    return f'<path d="{_rounded(points)}" fill="none" stroke="#5b6572" stroke-width="1.3" marker-end="url(#tip)"/>'


def _corners(first: Point, last: Point, leaves: str, enters: str, between: Sequence[float]) -> list[Point]:
    """Return the corners of a line of horizontal and vertical pieces."""
    points, vertical, at = [], leaves == "bottom", first
    coordinates = list(between)
    if not coordinates and vertical and enters == "top" and first[0] != last[0]:
        coordinates = [((first[1] + last[1]) / 2 - 64) / PITCH]
    for coordinate in coordinates:
        at = (at[0], 64 + coordinate * PITCH) if vertical else (coordinate, at[1])
        points.append(at)
        vertical = not vertical
    if at[0] != last[0] and at[1] != last[1]:
        points.append((at[0], last[1]) if vertical else (last[0], at[1]))
    return points


def _rounded(points: Sequence[Point]) -> str:
    """Return the path through the points with rounded corners."""
    path = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        entry, leave = _towards(corner, before), _towards(corner, after)
        path += f" L{entry[0]:.1f} {entry[1]:.1f} Q{corner[0]:.1f} {corner[1]:.1f} {leave[0]:.1f} {leave[1]:.1f}"
    return path + f" L{points[-1][0]:.1f} {points[-1][1]:.1f}"


def _towards(corner: Point, other: Point) -> Point:
    dx, dy = other[0] - corner[0], other[1] - corner[1]
    length = max(abs(dx), abs(dy)) or 1
    step = min(RADIUS, length / 2) / length
    return corner[0] + dx * step, corner[1] + dy * step


def _ground() -> list[str]:
    names = ", ".join(name.partition(".")[2] for name in GROUND)
    return [
        '<rect x="12" y="912" width="976" height="34" rx="8" fill="#eceff2" stroke="#9aa5b1"/>',
        _text(28, 934, f"The ground: {names}. Every room may import it.", 13, "#263442"),
        _text(14, 966, "An arrow points from a room to one that it imports; those that follow from others are left out.",
              12, "#5b6572"),
        _text(986, 966, "Drawn from the imports by scripts/draw_architecture.py", 12, "#5b6572", anchor="end"),
    ]  # fmt: skip


def _text(  # noqa: PLR0913 - what SVG says of a text
    x: float, y: float, text: str, size: float, fill: str, *, weight: int = 400, anchor: str = "start"
) -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{fill}" font-weight="{weight}" '
        f'text-anchor="{anchor}">{escape(text)}</text>'
    )


if __name__ == "__main__":
    PICTURE.write_text(draw(imports()))
