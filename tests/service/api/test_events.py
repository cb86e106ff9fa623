import asyncio
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, get_args

import httpx
import pytest

from service.schemas import Stage

Nifti = Callable[..., bytes]

ROUTE = "/v1/segmentations"

Event = dict[str, str]


def read(lines: Iterator[str]) -> Iterator[Event]:
    """Yield the events of a stream, by the rules of the HTML standard that are used here; comments are skipped."""
    event: Event = {}
    for line in lines:
        if not line and event:
            yield event
            event = {}
        elif line and not line.startswith(":"):
            name, _, value = line.partition(": ")
            event[name] = value


def watch(http: httpx.Client, job: str, last: str | None = None) -> list[Event]:
    """Return the events of a job until the service ends the stream."""
    headers = {"Last-Event-ID": last} if last else {}
    with http.stream("GET", f"{ROUTE}/{job}/events", headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].partition(";")[0] == "text/event-stream"
        assert answer.headers["cache-control"] == "no-cache"
        return list(read(answer.iter_lines()))


def test_a_job_is_followed_to_its_end(http: httpx.Client, nifti: Nifti) -> None:
    """Every event holds the whole job, states come in order, and the stream ends with the final one."""
    job = http.post(ROUTE, content=nifti()).json()

    events = watch(http, job["id"])

    states = [event["event"] for event in events]
    order = ["queued", "running", "succeeded"]
    assert states == sorted(states, key=order.index)
    assert states.count("succeeded") == 1
    assert states[-1] == "succeeded"
    assert [json.loads(event["data"])["state"] for event in events] == states
    assert json.loads(events[-1]["data"]) == http.get(f"{ROUTE}/{job['id']}").json()
    assert len({event["id"] for event in events}) == len(events)


def test_who_comes_late_sees_the_end(http: httpx.Client, nifti: Nifti) -> None:
    """The stream of a finished job has one event, or none for a client that has seen it."""
    job = http.post(ROUTE, content=nifti(), headers={"Prefer": "wait=50"}).json()

    (event,) = watch(http, job["id"])

    assert event["event"] == "succeeded"
    assert watch(http, job["id"], last=event["id"]) == []
    assert watch(http, job["id"], last="of another job") == [event]


def test_a_broken_connection_goes_on_where_it_was(http: httpx.Client, long: bytes) -> None:
    """With the id of the last event, only later changes are sent; a waiting job repeats nothing."""
    running, waiting = (http.post(ROUTE, content=long).json()["id"] for _ in range(2))
    with http.stream("GET", f"{ROUTE}/{waiting}/events") as answer:
        first = next(read(answer.iter_lines()))
    assert first["event"] == "queued"

    events = watch(http, waiting, last=first["id"])

    assert first["id"] not in [event["id"] for event in events]
    assert [event["event"] for event in events].count("queued") <= 1  # it may start at once
    assert events[-1]["event"] == "succeeded"
    stages = {json.loads(event["data"])["stage"] for event in events}
    assert stages & set(get_args(Stage))  # a short stage may pass between two looks
    assert http.get(f"{ROUTE}/{running}").json()["state"] == "succeeded"


@pytest.mark.parametrize("act", ["cancel", "delete"])
def test_a_stream_ends_with_its_job(http: httpx.Client, long: bytes, act: str) -> None:
    """The stream ends with an event if the job is cancelled, and without one if it is erased."""
    job = http.post(ROUTE, content=long).json()["id"]
    seen: list[list[Event]] = []
    thread = threading.Thread(target=lambda: seen.append(watch(http, job)))
    thread.start()
    time.sleep(0.5)

    if act == "cancel":
        assert http.post(f"{ROUTE}/{job}/cancel").status_code == 202
    else:
        assert http.delete(f"{ROUTE}/{job}").status_code == 204

    thread.join(20)
    assert not thread.is_alive()
    (events,) = seen
    assert events[-1]["event"] in ({"cancelled"} if act == "cancel" else {"queued", "running"})


@pytest.mark.parametrize("job", [uuid.uuid4().hex, "unknown", "%00"])
def test_an_unknown_job_has_no_stream(http: httpx.Client, job: str) -> None:
    """An unknown job is a 404 with a problem document, before any stream begins."""
    answer = http.get(f"{ROUTE}/{job}/events")

    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == "/problems/job-not-found"


def test_a_long_last_event_id_is_refused(http: httpx.Client, nifti: Nifti) -> None:
    """Event ids of this service have 16 characters."""
    job = http.post(ROUTE, content=nifti()).json()["id"]

    answer = http.get(f"{ROUTE}/{job}/events", headers={"Last-Event-ID": "x" * 101})

    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/invalid-request")


def test_streams_do_not_keep_others_from_being_served(http: httpx.Client, long: bytes, server_url: str) -> None:
    """Fifty streams hold no threads: health answers at once, and all streams see the end."""
    job = http.post(ROUTE, content=long).json()["id"]
    ends: list[Any] = []
    threads = [threading.Thread(target=lambda: ends.append(_end(server_url, job))) for _ in range(50)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    started = time.monotonic()
    assert http.get("/v2/health/live").status_code == 200
    assert time.monotonic() - started < 5
    http.post(f"{ROUTE}/{job}/cancel")
    for thread in threads:
        thread.join(60)

    assert len(ends) == 50
    assert {*ends} <= {"cancelled", "succeeded"}


def test_f3_two_hundred_streams_slow_nobody_down(http: httpx.Client, long: bytes, server_url: str) -> None:
    """While 200 clients follow a job, the list of the models takes under 0.2 s: the job is looked at once for all of them."""
    job = http.post(ROUTE, content=long).json()["id"]
    http.post(ROUTE, content=long)  # followed jobs that wait cost more

    taken = asyncio.run(_models_while_followed(server_url, job))
    for queued in http.get(ROUTE, params={"state": "queued"}).json()["jobs"]:
        http.post(f"{ROUTE}/{queued['id']}/cancel")

    assert sorted(taken)[len(taken) // 2] < 0.2, taken


async def _models_while_followed(url: str, job: str) -> list[float]:
    """Return the seconds of ten requests during 200 streams, which are then cancelled with their job."""
    limits = httpx.Limits(max_connections=300)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as http, asyncio.TaskGroup() as streams:
        followed = asyncio.Semaphore(0)

        async def follow() -> None:
            async with http.stream("GET", f"{ROUTE}/{job}/events") as answer:
                async for _ in answer.aiter_lines():
                    followed.release()

        for _ in range(200):
            streams.create_task(follow())
        for _ in range(200):
            await followed.acquire()
        taken = []
        for _ in range(10):
            started = time.monotonic()
            assert (await http.get("/v1/models")).status_code == 200
            taken.append(time.monotonic() - started)
        await http.post(f"{ROUTE}/{job}/cancel")
        return taken


def _end(url: str, job: str) -> str:
    with httpx.Client(base_url=url, timeout=60) as http:
        return watch(http, job)[-1]["event"]
