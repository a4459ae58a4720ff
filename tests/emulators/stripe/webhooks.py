"""Events and their delivery: at least once, in no order, signed as Stripe signs.

Nothing is delivered until `deliver` is called (or `automatic` is on), so that a test decides what
arrives when, how often, and in which order. A delivery that is not answered with 2xx stays pending
and is tried again an hour of the virtual clock later, three times in all.
"""

import contextlib
import http.client
import json
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from urllib.parse import urlsplit

from stripe import WebhookSignature

from tests.emulators.stripe.core import HOUR, Account, Call, Obj, Part, StripeError, plain, route
from tests.emulators.stripe.meters import iso

MAX_ENDPOINTS = 16
MAX_TRIES = 3
TIMEOUT = 10.0
EVENT_LIFE = 30 * 24 * HOUR

Order = Literal["sent", "reversed"] | int | Sequence[str]


@dataclass(frozen=True, slots=True)
class Delivery:
    """One POST to an endpoint; `status` is None when nobody answered."""

    event_id: str
    type: str
    url: str
    attempt: int
    status: int | None


@dataclass(frozen=True, slots=True)
class Pending:
    """An event on its way to an endpoint."""

    event: Obj = field(repr=False)
    endpoint: str
    due: float
    attempt: int = 1


Filter = Callable[[Obj], bool]


def _matching(only: "str | Filter | None") -> Filter:
    if only is None:
        return lambda event: True
    if isinstance(only, str):
        return lambda event: bool(event["type"] == only)
    return only


class Webhooks(Part):
    """Events, endpoints, and what is still to be delivered."""

    def __init__(self, account: Account, secret: str) -> None:
        super().__init__(account)
        self.secret = secret
        self.events: list[Obj] = []
        self.pending: list[Pending] = []
        self.deliveries: list[Delivery] = []
        self.automatic = False
        self.woken = threading.Event()
        self._thin: dict[str, Obj] = {}
        self._endpoints: dict[str, Obj] = {}
        self._acknowledged: set[tuple[str, str]] = set()
        self._sending = threading.Lock()
        account.emit = self.emit

    # What happens

    def emit(self, kind: str, obj: Obj, previous: Obj | None = None) -> None:
        """A snapshot event about an object as it is now."""
        data: Obj = {"object": plain(obj)}
        if previous is not None:
            data["previous_attributes"] = plain(previous)
        event = self.account.add(
            "event",
            "evt_test",
            api_version=self.account.settings.api_version,
            data=data,
            pending_webhooks=0,
            request=dict(self.account.cause),
            type=kind,
        )
        self.events.append(event)
        event["pending_webhooks"] = self._queue(event, thin=False)

    def emit_thin(self, kind: str, related: Obj | None, data: Obj) -> None:
        """A thin event: the notification says what happened, the event has to be fetched."""
        note = {
            "id": self.account.new_id("evt_test"),
            "object": "v2.core.event",
            "context": None,
            "created": iso(self.account.clock.time),
            "livemode": self.account.livemode,
            "reason": None,
            "related_object": related,
            "type": kind,
        }
        note = {name: value for name, value in note.items() if value is not None}
        self._thin[str(note["id"])] = note | {"data": data}
        self.events.append(note)
        self._queue(note, thin=True)

    def _queue(self, event: Obj, *, thin: bool) -> int:
        wanting = [
            name
            for name, endpoint in self._endpoints.items()
            if endpoint["_thin"] == thin
            and endpoint["status"] == "enabled"
            and ({"*", event["type"]} & set(endpoint["enabled_events"]))
        ]
        now = self.account.clock.time
        self.pending += [Pending(event, name, now) for name in wanting]
        self.woken.set()
        return len(wanting)

    # Endpoints

    def connect(
        self,
        url: str,
        events: Iterable[str] = ("*",),
        *,
        thin: bool = False,
        secrets: Sequence[str] = (),
        headers: dict[str, str] | None = None,
    ) -> str:
        """Register a URL of ours; several secrets are a rotation in progress."""
        fields = self._endpoint(url, list(events), thin, tuple(secrets) or (self.secret,))
        self._endpoints[fields["id"]]["_headers"] = dict(headers or {})
        return str(fields["id"])

    def _endpoint(
        self, url: str, events: list[str], thin: bool, secrets: tuple[str, ...], **more: Any
    ) -> Obj:
        if len(self._endpoints) >= MAX_ENDPOINTS:
            raise StripeError(f"You have reached the maximum of {MAX_ENDPOINTS} endpoints.")
        endpoint = self.account.add(
            "webhook_endpoint",
            "we",
            api_version=self.account.settings.api_version,
            application=None,
            description=None,
            enabled_events=events,
            metadata={},
            status="enabled",
            url=url,
            _thin=thin,
            _secrets=secrets,
            _headers={},
        )
        endpoint.update(more)
        self._endpoints[endpoint["id"]] = endpoint
        return endpoint

    def rotate(self, endpoint: str, secret: str, *, keep_old: bool = True) -> None:
        """Sign with a new secret, and for the time of the rotation with the old one as well."""
        found = self._endpoints[endpoint]
        found["_secrets"] = (secret, *(found["_secrets"] if keep_old else ()))

    @route("POST", "/v1/webhook_endpoints", "api_version description enabled_events metadata url")
    def create(self, call: Call) -> Obj:
        params = call.params
        events = params.texts("enabled_events")
        if not events:
            raise params.absent("enabled_events")
        secret = f"whsec_{self.account.new_id('made')}"
        endpoint = self._endpoint(
            params.need("url"),
            events,
            False,
            (secret,),
            api_version=params.text("api_version"),
            description=params.text("description"),
            metadata=params.metadata(),
        )
        return endpoint | {"secret": secret}

    @route("GET", "/v1/webhook_endpoints", paged=True)
    def index(self, call: Call) -> Obj:
        return self.account.page(call, [e for e in self._endpoints.values() if not e["_thin"]])

    @route("GET", "/v1/webhook_endpoints/{id}")
    def retrieve(self, call: Call) -> Obj:
        return self.account.get("webhook_endpoint", call.id)

    @route("POST", "/v1/webhook_endpoints/{id}", "description disabled enabled_events metadata url")
    def update(self, call: Call) -> Obj:
        endpoint, params = self.account.get("webhook_endpoint", call.id), call.params
        endpoint["metadata"] = params.metadata(endpoint["metadata"])
        if "disabled" in params:
            endpoint["status"] = "disabled" if params.flag("disabled") else "enabled"
        if "enabled_events" in params:
            endpoint["enabled_events"] = params.texts("enabled_events")
        if "url" in params:
            endpoint["url"] = params.need("url")
        return endpoint

    @route("DELETE", "/v1/webhook_endpoints/{id}")
    def delete(self, call: Call) -> Obj:
        self.account.get("webhook_endpoint", call.id)
        del self._endpoints[call.id], self.account.objects["webhook_endpoint"][call.id]
        return {"id": call.id, "object": "webhook_endpoint", "deleted": True}

    @route("GET", "/v1/events", "type types", paged=True)
    def list_events(self, call: Call) -> Obj:
        one = call.params.text("type")
        wanted = call.params.texts("types") or ([] if one is None else [one])
        since = self.now - EVENT_LIFE
        rows = [row for row in self.account.all("event") if row["created"] >= since]
        return self.account.page(call, [r for r in rows if not wanted or r["type"] in wanted])

    @route("GET", "/v1/events/{id}")
    def event(self, call: Call) -> Obj:
        return self.account.get("event", call.id)

    @route("GET", "/v2/core/events/{id}")
    def thin_event(self, call: Call) -> Obj:
        if call.id not in self._thin:
            raise StripeError(f"No such event: '{call.id}'", status=404, code="not_found")
        return self._thin[call.id]

    # Delivery

    def signed(
        self,
        event: Obj | bytes,
        *secrets: str,
        signed_at: int | None = None,
    ) -> tuple[bytes, dict[str, str]]:
        """The body and headers of a delivery, for a test that posts them itself."""
        body = event if isinstance(event, bytes) else json.dumps(plain(event), indent=2).encode()
        moment = int(time.time()) if signed_at is None else signed_at
        text = body.decode()
        signatures = [
            WebhookSignature.generate_signature_header(text, secret, moment).partition(",")[2]
            for secret in secrets or (self.secret,)
        ]
        return body, {
            "Content-Type": "application/json; charset=utf-8",
            "Stripe-Signature": ",".join([f"t={moment}", *signatures]),
            "User-Agent": "Stripe/1.0 (+https://stripe.com/docs/webhooks)",
        }

    def drop(self, only: str | Filter | None = None) -> int:
        """Lose what is pending; return how many."""
        return len(self._take(only, at=float("inf")))

    def delay(self, seconds: float, only: str | Filter | None = None) -> int:
        """Hold back what is pending until the clock has moved on; return how many."""
        held = self._take(only, at=float("inf"))
        due = self.account.clock.time + seconds
        with self.account.lock:
            self.pending += [replace(item, due=due) for item in held]
        return len(held)

    def _take(self, only: str | Filter | None, at: float) -> list[Pending]:
        matches = _matching(only)
        with self.account.lock:
            taken = [item for item in self.pending if item.due <= at and matches(item.event)]
            chosen = {id(item) for item in taken}
            self.pending = [item for item in self.pending if id(item) not in chosen]
        return taken

    def deliver(
        self,
        only: str | Filter | None = None,
        *,
        order: Order = "sent",
        copies: int = 1,
        signed_at: int | None = None,
        secret: str | None = None,
    ) -> list[Delivery]:
        """POST everything that is pending and due, and return what became of it.

        `order` is as sent, reversed, a seed to shuffle with, or a sequence of event ids or types.
        `secret` signs with another secret than the endpoint's, as a forger would.
        """
        with self._sending:
            batch = self._take(only, at=self.account.clock.time)
            batch = [item for item in self._sorted(batch, order) for _ in range(copies)]
            done = [self._post(item, signed_at, secret) for item in batch]
        again: dict[tuple[str, str], Pending] = {}
        good = {(d.event_id, d.url) for d in done if d.status is not None and d.status // 100 == 2}
        with self.account.lock:
            for item, result in zip(batch, done, strict=True):
                if (result.event_id, result.url) in good:
                    obj = item.event.get("data", {}).get("object", {})
                    self._acknowledged.add((item.event["type"], str(obj.get("id"))))
                elif item.attempt < MAX_TRIES:
                    again[result.event_id, result.url] = replace(
                        item, attempt=item.attempt + 1, due=self.account.clock.time + HOUR
                    )
            self.pending += again.values()
            self.deliveries += done
        return done

    @staticmethod
    def _sorted(batch: list[Pending], order: Order) -> list[Pending]:
        if order == "sent":
            return batch
        if order == "reversed":
            return batch[::-1]
        if isinstance(order, int):
            return random.Random(order).sample(batch, len(batch))
        place = {name: number for number, name in enumerate(order)}
        last = len(place)
        return sorted(
            batch,
            key=lambda item: place.get(item.event["id"], place.get(item.event["type"], last)),
        )

    def _post(self, item: Pending, signed_at: int | None, secret: str | None) -> Delivery:
        endpoint = self._endpoints.get(item.endpoint)
        status = None
        url = endpoint["url"] if endpoint is not None else ""
        if endpoint is not None:
            secrets = (secret,) if secret is not None else endpoint["_secrets"]
            body, headers = self.signed(item.event, *secrets, signed_at=signed_at)
            parts = urlsplit(url)
            connection = http.client.HTTPConnection(
                str(parts.hostname), parts.port, timeout=TIMEOUT
            )
            with (
                contextlib.closing(connection),
                contextlib.suppress(OSError, http.client.HTTPException),
            ):
                path = parts.path + (f"?{parts.query}" if parts.query else "")
                connection.request("POST", path or "/", body, headers | endpoint["_headers"])
                status = connection.getresponse().status
        return Delivery(item.event["id"], item.event["type"], url, item.attempt, status)

    def acknowledged(self, kind: str, name: str) -> bool:
        """Whether every endpoint subscribed to the event has accepted it, or none is."""
        waiting = any(
            item.event["type"] == kind and item.event["data"]["object"].get("id") == name
            for item in self.pending
        )
        return not waiting or (kind, name) in self._acknowledged
