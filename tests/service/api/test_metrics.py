import httpx
from prometheus_client.parser import text_string_to_metric_families


def counted(http: httpx.Client, route: str, status: str) -> float:
    """Return how many GET requests of a route were answered with a status."""
    families = text_string_to_metric_families(http.get("/metrics").text)
    labels = {"method": "GET", "route": route, "status": status}
    samples = [sample for family in families for sample in family.samples if sample.name == "calibrant_requests_total"]
    return sum(sample.value for sample in samples if sample.labels == labels)


def test_requests_are_counted_by_route(http: httpx.Client) -> None:
    """Requests are counted by route; a path without a route does not become a label."""
    route = "/v1/segmentations/{job_id}"
    before = counted(http, route, "404"), counted(http, "none", "404")

    for _ in range(2):
        http.get("/v1/segmentations/CANARY-PATH")
    http.get("/CANARY-PATH")

    assert counted(http, route, "404") == before[0] + 2
    assert counted(http, "none", "404") == before[1] + 1
    assert "CANARY" not in http.get("/metrics").text
