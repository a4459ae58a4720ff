"""GET /metrics."""

import httpx
from pytest_django.fixtures import Settings

from tests.server import Api


def test_metrics_are_closed_without_a_token_and_with_a_wrong_one(
    api: Api, settings: Settings
) -> None:
    assert httpx.get(f"{api.origin}/metrics").status_code == 404
    assert (
        httpx.get(f"{api.origin}/metrics", headers={"Authorization": "Bearer x"}).status_code == 404
    )
    settings.METRICS_TOKEN = "scrape"

    wrong = httpx.get(f"{api.origin}/metrics", headers={"Authorization": "Bearer other"})

    assert wrong.status_code == 404


def test_metrics_count_requests_images_and_circuits(api: Api, settings: Settings) -> None:
    settings.METRICS_TOKEN = "scrape"
    api.draw(n=2)
    api.draw(size="7x7")

    answer = httpx.get(f"{api.origin}/metrics", headers={"Authorization": "Bearer scrape"})

    assert answer.status_code == 200
    route = 'route="v1/images/generations"'
    assert f'geekhub_requests_total{{code="",{route},status="200"}}' in answer.text
    assert f'geekhub_requests_total{{code="invalid_request_error",{route}' in answer.text
    assert 'geekhub_images_total{model="openai/gpt-image-1"}' in answer.text
    assert 'geekhub_circuit_open{provider="openai"} 0.0' in answer.text
