"""The HTTP in front of the account: keys, versions, form decoding, idempotency, faults, records.

The order of what can stop a call: the key and the version, the rate limit, a `429` or `lock`
fault, a stored answer under the same Idempotency-Key, the lane of customer and meter, the other
faults, and at last the work. What is refused before the work began is not stored under the key.
"""

import base64
import contextlib
import json
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.emulators.stripe.checkout import Page
from tests.emulators.stripe.core import (
    Account,
    Call,
    Handler,
    Obj,
    Params,
    Part,
    Route,
    StripeError,
    decode_form,
)
from tests.emulators.stripe.faults import Fault, Faults
from tests.emulators.stripe.meters import Meters, lock_error

MAX_KEY = 255
METER_EVENTS = "/v1/billing/meter_events"
RETRIED = {True: "true", False: "false"}


@dataclass(frozen=True, slots=True)
class Request:
    """One call to the API. `status` is None until it is answered, and forever if it was dropped;
    `replayed` was answered from memory; `at` is the virtual time of its arrival."""

    method: str
    path: str
    params: Obj
    idempotency_key: str | None
    status: int | None
    request_id: str
    at: float
    replayed: bool = False
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back."""

    status: int
    body: Obj
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Stored:
    """What an Idempotency-Key stands for; without an answer, the call is still under way."""

    method: str
    path: str
    params: Obj
    at: float
    request_id: str
    answer: Answer | None = None


class Dropped(Exception):
    """The connection ends without an answer."""


class Api:
    """The API of one account."""

    def __init__(
        self, account: Account, parts: list[Part], meters: Meters, faults: Faults, key: str
    ) -> None:
        self.account, self.meters, self.faults, self.key = account, meters, faults, key
        self.requests: list[Request] = []
        self.stored: dict[str, _Stored] = {}
        self._recent: deque[float] = deque()
        found = [pair for part in parts for pair in part.routes()]
        # A path that is written out goes before one with a placeholder.
        self._routes = sorted(found, key=lambda pair: pair[0].template.count("{"))

    def handle(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Answer:
        """Answer one call, or raise `Dropped`."""
        url = urlsplit(target)
        request_id = self.account.new_id("req")
        key = headers.get("idempotency-key") if method == "POST" else None
        with self.account.lock:
            place = len(self.requests)
            row = Request(method, url.path, {}, key, None, request_id, self.account.clock.time)
            self.requests.append(row)
        base = {"Request-Id": request_id, "Stripe-Version": self.account.settings.api_version}
        if key is not None:
            base |= {"Idempotency-Key": key, "Original-Request": request_id}
        try:
            row, answer = self._answer(row, place, url.query, headers, body)
        except StripeError as refusal:
            answer = self.refused(refusal, request_id, url.path)
        answer = replace(answer, headers=base | answer.headers)
        with self.account.lock:
            # What is known of the call was noted as soon as it was.
            known = row if row.params else self.requests[place]
            self.requests[place] = replace(known, status=answer.status)
        return answer

    def refused(self, refusal: StripeError, request_id: str, path: str) -> Answer:
        """An error in Stripe's shape, which the v2 half of the API writes shorter."""
        error = dict(refusal.error)
        if path.startswith("/v2/"):
            error = {"code": error.get("code", "invalid_request"), "message": error["message"]}
        else:
            error["request_log_url"] = f"https://dashboard.stripe.com/test/logs/{request_id}"
        return Answer(refusal.status, {"error": error}, refusal.headers)

    def _answer(
        self, row: Request, place: int, query: str, headers: dict[str, str], body: bytes
    ) -> tuple[Request, Answer]:
        method, path = row.method, row.path
        self._authenticate(headers)
        version, pinned = headers.get("stripe-version"), self.account.settings.api_version
        if version != pinned:
            raise StripeError(
                f"Invalid Stripe API version: {version}. This account is on {pinned}."
            )
        if len(row.idempotency_key or "") > MAX_KEY:
            raise StripeError(f"Idempotency keys can be at most {MAX_KEY} characters long.")
        params = self._decode(method, query, headers, body)
        row = self.requests[place] = replace(row, params=params)
        self._limit()
        fault = self.faults.pick(method, path)
        row = replace(row, fault=fault.kind if fault is not None else None)
        self.requests[place] = row
        if fault is not None and fault.kind in ("429", "lock"):
            return row, self._limited(fault, row)
        route, handler, ids = self._find(method, path)
        Params(params).only(*route.allowed)
        call = Call(method, path, Params(params), ids, row.request_id, row.idempotency_key)
        if (stored := self._claim(row)) is not None:
            return replace(row, replayed=True), self._replay(stored)
        try:
            with self._lane(path, call.params):
                answer = self._perform(call, handler, fault)
        finally:
            self._abandon(row)
        return row, answer

    def _authenticate(self, headers: dict[str, str]) -> None:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "basic":
            with contextlib.suppress(ValueError):
                given = base64.b64decode(given).decode().partition(":")[0]
        if not given:
            text = "You did not provide an API key. You need to provide your API key in the"
            raise StripeError(f"{text} Authorization header, using Bearer auth.", status=401)
        if given != self.key:
            hidden = f"{given[:8]}{'*' * max(0, len(given) - 12)}{given[-4:]}"
            raise StripeError(f"Invalid API Key provided: {hidden}", status=401)

    @staticmethod
    def _decode(method: str, query: str, headers: dict[str, str], body: bytes) -> Obj:
        raw = body.decode() if method == "POST" else query
        if headers.get("content-type", "").startswith("application/json"):
            decoded = json.loads(raw or "{}")
            return decoded if isinstance(decoded, dict) else {}
        return decode_form(raw)

    def _limit(self) -> None:
        most = self.account.settings.rate_limit
        if most is None:
            return
        with self.account.lock:
            now = time.monotonic()
            while self._recent and self._recent[0] <= now - 1:
                self._recent.popleft()
            if len(self._recent) >= most:
                raise rate_error()
            self._recent.append(now)

    def _limited(self, fault: Fault, row: Request) -> Answer:
        fault.wait()
        refusal = rate_error() if fault.kind == "429" else lock_error()
        answer = self.refused(refusal, row.request_id, row.path)
        return replace(answer, headers=answer.headers | self._hint(fault))

    @staticmethod
    def _hint(fault: Fault) -> dict[str, str]:
        if fault.should_retry is None:
            return {}
        return {"stripe-should-retry": RETRIED[fault.should_retry]}

    def _find(self, method: str, path: str) -> tuple[Route, Handler, tuple[str, ...]]:
        for route, handler in self._routes:
            found = route.pattern.fullmatch(path)
            if found is not None and route.method == method:
                return route, handler, found.groups()
        text = f"Unrecognized request URL ({method}: {path})."
        raise StripeError(f"{text} Or one that is not played.", status=404)

    def _claim(self, row: Request) -> _Stored | None:
        """Take the Idempotency-Key for this call, or find what is stored under it."""
        key = row.idempotency_key
        if key is None:
            return None
        now = self.account.clock.time
        with self.account.lock:
            old = self.stored.get(key)
            if old is None or now - old.at >= self.account.settings.idempotency_window:
                self.stored[key] = _Stored(row.method, row.path, row.params, now, row.request_id)
                return None
        again = f"Try using a key other than '{key}' if you meant to execute a different request."
        if old.path != row.path:
            text = "Keys for idempotent requests can only be used for the same endpoint they were"
            text += f" first used for ('{old.path}' vs '{row.path}'). {again}"
            raise StripeError(text, kind="idempotency_error")
        if old.params != row.params:
            text = "Keys for idempotent requests can only be used with the same parameters they"
            raise StripeError(f"{text} were first used with. {again}", kind="idempotency_error")
        if old.answer is None:
            text = "There is currently another in-progress request using this Idempotent Key (that"
            text += " probably means you submitted twice, and the other request is still going"
            text += f" through): {key}. Please try again later."
            code = "idempotency_key_in_use"
            raise StripeError(text, status=409, kind="idempotency_error", code=code)
        return old

    @staticmethod
    def _replay(stored: _Stored) -> Answer:
        answer = stored.answer or Answer(500, {})
        marks = {"Idempotent-Replayed": "true", "Original-Request": stored.request_id}
        return replace(answer, headers=answer.headers | marks)

    def _abandon(self, row: Request) -> None:
        """Free the key of a call that was refused before it began."""
        with self.account.lock:
            mine = self.stored.get(row.idempotency_key or "")
            if mine is not None and mine.answer is None and mine.request_id == row.request_id:
                del self.stored[row.idempotency_key or ""]

    @contextlib.contextmanager
    def _lane(self, path: str, params: Params) -> Iterator[None]:
        if path != METER_EVENTS:
            yield
            return
        with self.meters.lane(params):
            yield

    def _perform(self, call: Call, handler: Handler, fault: Fault | None) -> Answer:
        kind = fault.kind if fault is not None else None
        if fault is not None and kind in ("drop_before", "500_before", "slow_before"):
            fault.wait()
        if kind == "drop_before":
            raise Dropped
        if fault is not None and kind == "500_before":
            return self._keep(call, self._broken(call, fault))
        answer, kept = self._work(call, handler)
        if fault is not None and kind == "500_after":
            answer, kept = self._broken(call, fault), True
        if kept:
            self._keep(call, answer)
        if fault is not None and kind in ("drop_after", "500_after", "slow_after"):
            fault.wait()
        if kind == "drop_after":
            raise Dropped
        return answer

    def _work(self, call: Call, handler: Handler) -> tuple[Answer, bool]:
        with self.account.lock:
            self.account.clock.catch_up()
            self.account.cause = {"id": call.request_id, "idempotency_key": call.key}
            try:
                found = handler(call)
                shown = self.account.show(found, call.params.texts("expand"))
                return Answer(200, shown), True
            except StripeError as refusal:
                return self.refused(refusal, call.request_id, call.path), refusal.kept
            finally:
                self.account.cause = {"id": None, "idempotency_key": None}

    def _broken(self, call: Call, fault: Fault) -> Answer:
        text = "An unknown error occurred while processing the request."
        refusal = StripeError(text, status=500, kind="api_error")
        answer = self.refused(refusal, call.request_id, call.path)
        return replace(answer, headers=answer.headers | self._hint(fault))

    def _keep(self, call: Call, answer: Answer) -> Answer:
        with self.account.lock:
            if call.key is not None and call.key in self.stored:
                self.stored[call.key].answer = answer
        return answer


def rate_error() -> StripeError:
    """Too many calls. Nothing was done."""
    return StripeError(
        "Request rate limit exceeded. Learn more about rate limits in the API documentation.",
        status=429,
        code="rate_limit",
        headers={"Stripe-Rate-Limited-Reason": "global-rate"},
    )


class Server(ThreadingHTTPServer):
    """The socket. Every connection has a thread, so that a held call holds nobody else."""

    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, emulator: Any) -> None:
        self.emulator = emulator
        self._open: set[socket.socket] = set()
        self._guard = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Exchange)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._guard:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._guard:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that disconnected is expected; anything else is kept for the test."""
        self.emulator.note_crash()

    def close_all(self) -> None:
        """End every connection, also those that are held."""
        self.shutdown()
        self.server_close()
        with self._guard:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


class _Exchange(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def log_message(self, *_: object) -> None:
        """No log."""

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if len(body) < length:  # the client died while it was speaking
            self.close_connection = True
            return
        emulator = self.server.emulator  # type: ignore[attr-defined]
        if not self.path.startswith(("/v1/", "/v2/")):
            form = {name: values[0] for name, values in parse_qs(body.decode()).items()}
            page: Page = emulator.page(self.command, urlsplit(self.path).path, form)
            self._send(page.status, page.headers, page.body)
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            answer: Answer = emulator.answer(self.command, self.path, headers, body)
        except Dropped:
            self.close_connection = True
            return
        raw = json.dumps(answer.body).encode()
        self._send(answer.status, {"Content-Type": "application/json"} | answer.headers, raw)

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    do_GET = do_POST = do_DELETE = _serve
