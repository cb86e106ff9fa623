from prometheus_client.parser import text_string_to_metric_families

from service.observability.metrics import Metrics


def samples(metrics: Metrics) -> dict[tuple[str, tuple[str, ...]], float]:
    """Return every sample by name and label values, as Prometheus's own parser reads them."""
    text = metrics.text({"queued": 3, "running": 1}, ready=True, free_bytes=7).decode()
    return {
        (sample.name, tuple(sample.labels[key] for key in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_cases_are_counted_by_model_and_end() -> None:
    """Two cases succeed, one of them withdrawn and one without foreground, and one fails."""
    metrics = Metrics()
    metrics.case_succeeded("m", {"infer": 2.0}, 0.85, "withdrawn")
    metrics.case_succeeded("m", {"infer": 1.0}, None, "not compared")
    metrics.case_ended("m", "failed")

    actual = samples(metrics)

    assert actual["calibrant_jobs_finished_total", ("m", "succeeded")] == 2
    assert actual["calibrant_jobs_finished_total", ("m", "failed")] == 1
    assert actual["calibrant_statements_withdrawn_total", ("m",)] == 1
    assert actual["calibrant_statements_total", ("m", "withdrawn")] == 1
    assert actual["calibrant_statements_total", ("m", "not compared")] == 1
    assert actual["calibrant_stage_seconds_sum", ("m", "infer")] == 3.0
    assert actual["calibrant_foreground_confidence_count", ("m",)] == 1
    assert actual["calibrant_foreground_confidence_bucket", ("0.8", "m")] == 0
    assert actual["calibrant_foreground_confidence_bucket", ("0.85", "m")] == 1


def test_requests_and_waiting_jobs_are_counted() -> None:
    """Requests are labelled by method, route and status; gauges show the current jobs."""
    metrics = Metrics()
    metrics.request_answered("GET", "/v1/models", 200, 0.02)

    actual = samples(metrics)

    assert actual["calibrant_requests_total", ("GET", "/v1/models", "200")] == 1
    assert actual["calibrant_request_seconds_sum", ("GET", "/v1/models")] == 0.02
    assert (actual["calibrant_jobs", ("queued",)], actual["calibrant_jobs", ("running",)]) == (3, 1)


def test_two_services_in_one_process_do_not_share_metrics() -> None:
    """Each has a registry of its own."""
    first = Metrics()
    first.case_ended("m", "failed")

    assert ("calibrant_jobs_finished_total", ("m", "failed")) not in samples(Metrics())


def test_every_name_stands_in_the_table() -> None:
    """The docstring lists all metrics that are written and no others."""
    metrics = Metrics()
    metrics.request_answered("GET", "/", 200, 0.1)
    metrics.case_succeeded("m", {"infer": 1.0}, 0.5, "withdrawn")
    families = {
        family.name
        for family in text_string_to_metric_families(metrics.text({"queued": 0}, ready=False, free_bytes=0).decode())
    }

    table = {line.split("`")[1].removesuffix("_total") for line in (Metrics.__doc__ or "").splitlines() if "`" in line}
    assert families == table
