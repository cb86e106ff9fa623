import io
from collections.abc import Callable

from rich.console import Console

from service.commands.batch.journal import Line
from service.commands.batch.progress import Bars, Plain, display

PROBLEM = {"type": "/problems/x", "title": "Wrong", "status": 422, "detail": "[bold] is 42."}


def test_elsewhere_than_on_a_terminal_each_event_is_a_line(make_line: Callable[..., Line]) -> None:
    """Without a terminal, every event is one unbroken line with a count, and brackets are not markup."""
    file = io.StringIO()
    with display(Console(file=file, width=40), 3) as shown:
        assert isinstance(shown, Plain)
        shown.begin("a")
        shown.show("a", "infer")
        shown.end("a", make_line())
        shown.end("b", make_line(problem=PROBLEM))
        shown.end("c", None)
        shown.end("d", make_line(), before=True)

    assert file.getvalue().splitlines() == [
        "a: begun",
        "[1/3] a: succeeded in 1.0 s",
        "[2/3] b: failed: Wrong: [bold] is 42.",
        "c: interrupted, left for the next run",
        "[3/3] d: done before",
    ]


def test_on_a_terminal_each_running_case_has_a_row(make_line: Callable[..., Line]) -> None:
    """On a terminal, a running case has a row, which is replaced by a line when it ends."""
    file = io.StringIO()
    with display(Console(file=file, force_terminal=True, width=100), 2) as shown:
        assert isinstance(shown, Bars)
        shown.begin("a")
        shown.show("a", "infer")
        assert [task.description for task in shown._progress.tasks] == ["cases", "a: infer"]
        shown.end("a", make_line())
        assert [(task.description, task.completed) for task in shown._progress.tasks] == [("cases", 1)]
        shown.end("b", make_line(), before=True)

    assert "a: succeeded in 1.0 s" in file.getvalue()
    assert "b: done before" in file.getvalue()
