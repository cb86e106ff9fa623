import json
import subprocess
import sys

SCRIPT = """
import logging
import threading
import warnings
import structlog
from service.observability.log import configure_logging

configure_logging()
structlog.get_logger("service.api").info("request", route="/v1/scans", status=200, patient="CANARY^NAME")
logging.getLogger("service.bundle").warning("bundle reloaded")
logging.getLogger("service.quiet").debug("not to be seen")
logging.getLogger("pydicom").error("cannot read %s of CANARY^NAME", "CANARY^TAG")
try:
    raise ValueError("CANARY^ERROR")
except ValueError:
    logging.getLogger("uvicorn.error").exception("Exception in CANARY^PATH")
warnings.warn("Invalid value for VR UI: 'CANARY^UID'")
def fail():
    raise ValueError("CANARY^THREAD")
thread = threading.Thread(target=fail)
thread.start()
thread.join()
"""


def lines() -> list[dict[str, object]]:
    """Return the lines that another process logs."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_a_line_is_json_with_fields_from_the_list() -> None:
    """Route and status are logged; a field that is not on the list is dropped."""
    request = lines()[0]

    assert (request["event"], request["route"], request["status"]) == ("request", "/v1/scans", 200)
    assert (request["level"], request["logger"]) == ("info", "service.api")
    assert "patient" not in request


def test_of_other_libraries_only_the_place_is_kept() -> None:
    """Messages and tracebacks of libraries are not logged."""
    logged = lines()

    assert [line["logger"] for line in logged[:4]] == ["service.api", "service.bundle", "pydicom", "uvicorn.error"]
    assert "CANARY" not in json.dumps(logged)
    assert logged[2].keys() == {"event", "level", "logger", "line", "timestamp"}
    assert logged[1]["event"] == "bundle reloaded"


def test_f14_warnings_and_threads_that_fail_say_nothing_of_what_was_sent() -> None:
    """Pydicom repeats a malformed value in a Python warning; Python prints the message of an error that ends a thread."""
    warning, failure = lines()[4:]

    assert (warning["logger"], warning["level"]) == ("py.warnings", "warning")
    assert (failure["event"], failure["error"]) == ("a thread failed", "ValueError")
