"""The bodies of successful answers."""

import asyncio
import time
from collections.abc import Sequence
from typing import cast

import pybase64

from accounts.models import ApiKey
from billing.models import Budget, BudgetPeriod
from billing.spending.prices import Quote
from geekhub.lib import money
from images.api import shapes
from images.api.shapes import Audited, Drawn, Model, Picture
from images.catalog import parameters
from images.catalog.model import MAX_N, ImageModel
from images.drawing import admit
from images.drawing.gateway import Gateway
from images.drawing.repeats import Finished
from images.models import Generation, GenerationStatus, Image
from images.pixels.pictures import FORMATS
from images.providers.registry import OWNERS
from images.stores.contract import ImageStore
from images.usage import status


def headers(row: Generation) -> dict[str, str]:
    """Return the headers of a delivered request."""
    return {"x-geekhub-cost-usd": money.to_usd(row.cost_micro)}


def replayed(row: Generation) -> dict[str, str]:
    """Return the headers of an answer that was given before."""
    return {"x-request-id": row.request_id, "idempotent-replayed": "true"}


async def generation(finished: Finished, store: ImageStore) -> Drawn:
    """Return OpenAI's images answer with our additions."""
    row = finished.generation
    data = await _images(finished.images, store)
    if row.parameters.get("response_format") == "b64_json":
        for entry, content in zip(data, finished.data, strict=True):
            entry["b64_json"] = pybase64.b64encode(content).decode()
    body: Drawn = {
        "id": row.request_id,
        "object": "list",
        "created": int(row.created_at.timestamp()),
        "model": row.model,
        "data": data,
    }
    if finished.deleted:
        body["deleted"] = list(finished.deleted)
    if row.filtered:
        body["filtered_count"] = row.filtered
    if row.adjusted:
        body["adjusted"] = row.adjusted
    if row.parameters.get("listed"):
        body["geekhub"] = {
            "final_model": row.model,
            "requested": row.requested,
            "attempts": row.attempts,
            "skipped": row.skipped,
        }
    return body


def priced(what: admit.Priced, request_id: str) -> shapes.Priced:
    """Return the answer to a dry run."""
    return {
        "id": request_id,
        "object": "list",
        "created": int(time.time()),
        "model": what.candidate.model.id,
        "data": [],
        "dry_run": True,
        "adjusted": [
            {"param": one.param, "asked": one.asked, "used": one.used, "why": one.why}
            for one in what.candidate.adjusted
        ],
        "geekhub": {
            "unit_price_usd": money.to_usd(what.unit_micro),
            "max_cost_usd": money.to_usd(what.most_micro),
            "skipped": [{"model": one.model, "reason": one.reason} for one in what.skipped],
        },
    }


async def audit(row: Generation, store: ImageStore) -> Audited:
    """Return everything about one request, in OpenRouter's shape with our additions."""
    images: Sequence[Image] = list(row.images.all())
    return {
        "data": {
            "id": row.request_id,
            "model": row.model or None,
            "requested": row.requested,
            "provider_name": OWNERS.get(row.provider),
            "api_type": "image",
            "status": GenerationStatus(row.status),
            "sandbox": row.sandbox,
            "created_at": row.created_at.isoformat(),
            "finished_at": row.finished_at.isoformat() if row.finished_at else None,
            "latency": row.latency_ms,
            "total_cost": float(money.to_decimal(row.cost_micro)),
            "cost_usd": money.to_usd(row.cost_micro),
            "num_media_completion": row.delivered,
            "n": row.n,
            "filtered_count": row.filtered,
            "parameters": row.parameters,
            "tags": row.tags,
            "attempts": row.attempts,
            "skipped": row.skipped,
            "adjusted": row.adjusted,
            "error": (
                {"code": row.error_code, "message": row.error_message}
                if row.status == GenerationStatus.FAILED
                else None
            ),
            "images": await _images(images, store),
        }
    }


def model(row: ImageModel, gateway: Gateway, key: ApiKey, quote: Quote | None) -> Model:
    """Return one model in OpenAI's shape with our additions; `quote` is the organization's."""
    return {
        "id": row.id,
        "object": "model",
        "created": int(row.created_timestamp),
        "owned_by": row.provider,
        "kind": "image",
        "name": row.name,
        "description": row.good_for,
        "pricing": {
            "per_image_usd": None if quote is None else money.to_usd(quote.unit_micro),
            "currency": "USD",
        },
        "sizes": ["auto", *row.sizes],
        "max_n": MAX_N,
        "qualities": list(row.qualities),
        "supports": parameters.supports(row) | {"edits": row.edits > 0},
        "output_formats": [name.lower() for name in FORMATS],
        "max_prompt": row.max_prompt,
        "typical_seconds": {"p50": row.p50_seconds, "p95": row.p95_seconds},
        "available": (
            quote is not None and gateway.provider_for(row, sandbox=key.sandbox) is not None
        ),
        "status": row.status,
        "shutdown_date": row.shutdown_date.isoformat() if row.shutdown_date else None,
        "successor": row.successor,
    }


def credits(what: status.Credits) -> shapes.Credits:
    """Return OpenRouter's credits shape with our additions."""
    account = what.account
    total = account.balance_micro + account.spent_micro
    covering = [_budget(rule, running) for rule, running in what.budgets]
    return {
        "data": {
            "total_credits": float(money.to_decimal(total)),
            "total_usage": float(money.to_decimal(account.spent_micro)),
        },
        "geekhub": {
            "balance_usd": money.to_usd(account.balance_micro),
            "held_usd": money.to_usd(account.held_micro),
            "credit_limit_usd": money.to_usd(account.credit_limit_micro),
            "spent_30_days_usd": money.to_usd(what.spent_30_days_micro),
            "key": {
                "spent_usd": money.to_usd(what.key_spent_micro),
                "budget": covering[0] if covering else None,
                "budgets": covering,
            },
        },
    }


def _budget(rule: Budget, running: BudgetPeriod) -> shapes.Budget:
    row: shapes.Budget = {
        "scope": rule.scope,
        "limit_usd": None if rule.limit_micro is None else money.to_usd(rule.limit_micro),
        "limit_images": rule.limit_images,
        "period": rule.period,
        "since": running.starts_at.isoformat(),
        "spent_usd": money.to_usd(running.spent_micro),
        "held_usd": money.to_usd(running.held_micro),
        "spent_images": running.spent_images,
        "held_images": running.held_images,
    }
    # A word that a budget goes by has the name of its scope.
    return cast(shapes.Budget, {**row, **rule.holder.words})


async def _images(rows: Sequence[Image], store: ImageStore) -> list[Picture]:
    return list(await asyncio.gather(*(image(row, store) for row in rows)))


async def image(row: Image, store: ImageStore) -> Picture:
    """Return one picture of an answer's `data`; without an address if the store has lost it."""
    try:
        link = row.link or await store.alink(row.name)
    except FileNotFoundError:
        # A private bucket signs no address of what it does not have.
        link = None
    entry: Picture = {
        "url": link,
        "width": row.width,
        "height": row.height,
        "mime_type": row.mime_type,
        "bytes": row.bytes,
        "sha256": row.sha256,
    }
    if row.revised_prompt:
        entry["revised_prompt"] = row.revised_prompt
    return entry
