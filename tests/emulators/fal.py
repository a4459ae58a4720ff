"""fal.ai: the sync host, the queue and the picture files, on one port with path prefixes.

Facts it encodes (source: provider documentation; UNSURE facts take the cautious reading):

* Authorization has the scheme `Key`. Unknown input fields are ignored; they are kept in `ignored`.
* The queue takes any JSON and validates when the request runs, so `COMPLETED` does not mean
  success. Follow-up URLs keep only `owner/app`; they are good for nothing but the request.
* What a client does not send gets the model's default: 4:3 for flux and SD 3.5, 16:9 for ultra.
* A picture the safety checker stops is black, flagged in `has_nsfw_concepts`, and billed. Models
  without that field refuse the whole request with 422.
* flux and SD 3.5 are billed per megapixel, rounded up per picture; 1024x1024 is one (fal's
  llms.txt of each model, 28 November 2026).
* Sizes outside what a model is made for are refused (UNSURE: they may be corrected instead):
  flux 256-1440 in multiples of 32, SD 3.5 512-1440, recraft 512-2048. A recraft prompt has at most
  1000 characters.
* A 502, 503 or 504 from the ingress has no `x-fal-request-id`; the work never began.
* A status names the request and its three URLs, and has log lines only when `logs` asks for them
  (@fal-ai/client 1.10.1, QueueStatus); `/status/stream` sends the same until COMPLETED.
* `/stream` answers with server-sent events, the last of which is the output.
* A cancelled request that had not started is never run; one that had is billed all the same.
"""

import asyncio
import base64
import contextlib
import json
import re
import uuid
from collections import Counter, OrderedDict
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from aiohttp import web

from tests.emulators.base import (
    HOLD_LIMIT,
    Answer,
    Behaviour,
    Call,
    Emulator,
    ErrorRow,
    Fault,
    ratio_size,
)

PRESETS = {
    "square_hd": (1024, 1024),
    "square": (512, 512),
    "portrait_4_3": (768, 1024),
    "portrait_16_9": (576, 1024),
    "landscape_4_3": (1024, 768),
    "landscape_16_9": (1024, 576),
}
MEGAPIXEL = 1024 * 1024
SEED = 42

RECRAFT_STYLES = (
    "any",
    "realistic_image",
    "digital_illustration",
    "vector_illustration",
    *(
        f"realistic_image/{name}"
        for name in [
            "b_and_w",
            "enterprise",
            "hard_flash",
            "hdr",
            "motion_blur",
            "natural_light",
            "studio_portrait",
        ]
    ),
    *(
        f"digital_illustration/{name}"
        for name in [
            "2d_art_poster",
            "2d_art_poster_2",
            "3d",
            "80s",
            "engraving_color",
            "glow",
            "grain",
            "hand_drawn",
            "hand_drawn_outline",
            "handmade_3d",
            "infantile_sketch",
            "kawaii",
            "pixel_art",
            "psychedelic",
            "seamless",
            "voxel",
            "watercolor",
        ]
    ),
    *(
        f"vector_illustration/{name}"
        for name in [
            "cartoon",
            "doodle_line_art",
            "engraving",
            "flat_2",
            "kawaii",
            "line_art",
            "line_circuit",
            "linocut",
            "seamless",
        ]
    ),
)


@dataclass(frozen=True, slots=True)
class Rule:
    """What one input field accepts."""

    kind: Literal["text", "flag", "whole", "number", "one_of", "ratio", "size", "any"]
    default: Any = None
    values: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None
    step: int = 1


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The input and the pictures of one model."""

    rules: dict[str, Rule]
    fmt: Literal["png", "jpeg", "webp"]
    nsfw: bool = True
    by_area: bool = False
    edge: int = 1024


_TEXT, _FLAG, _SEED, _ANY = Rule("text"), Rule("flag", False), Rule("whole"), Rule("any")
_FORMAT = Rule("one_of", "jpeg", ("jpeg", "png"))
_TOLERANCE = Rule("one_of", "2", ("1", "2", "3", "4", "5", "6"))
_COUNT = Rule("whole", 1, least=1, most=4)
ENDPOINTS: dict[str, Endpoint] = {
    "fal-ai/flux-pro/v1.1": Endpoint(
        {
            "prompt": _TEXT,
            "image_size": Rule("size", "landscape_4_3", least=256, most=1440, step=32),
            "num_images": _COUNT,
            "seed": _SEED,
            "output_format": _FORMAT,
            "safety_tolerance": _TOLERANCE,
            "enhance_prompt": _FLAG,
            "sync_mode": _FLAG,
        },
        "jpeg",
        by_area=True,
    ),
    "fal-ai/flux-pro/v1.1-ultra": Endpoint(
        {
            "prompt": _TEXT,
            "aspect_ratio": Rule("ratio", "16:9"),
            "num_images": _COUNT,
            "seed": _SEED,
            "output_format": _FORMAT,
            "safety_tolerance": _TOLERANCE,
            "enhance_prompt": _FLAG,
            "raw": _FLAG,
            "image_url": _TEXT,
            "image_prompt_strength": Rule("number", 0.1, least=0, most=1),
            "sync_mode": _FLAG,
        },
        "jpeg",
        edge=2048,
    ),
    "fal-ai/recraft/v3/text-to-image": Endpoint(
        {
            "prompt": Rule("text", most=1000),
            "image_size": Rule("size", "square_hd", least=512, most=2048),
            "style": Rule("one_of", "realistic_image", RECRAFT_STYLES),
            "colors": _ANY,
            "style_id": _TEXT,
            "enable_safety_checker": _FLAG,
        },
        "webp",
        nsfw=False,
    ),
    "fal-ai/ideogram/v2": Endpoint(
        {
            "prompt": _TEXT,
            "aspect_ratio": Rule(
                "one_of",
                "1:1",
                (
                    "10:16",
                    "16:10",
                    "9:16",
                    "16:9",
                    "4:3",
                    "3:4",
                    "1:1",
                    "1:3",
                    "3:1",
                    "3:2",
                    "2:3",
                ),
            ),
            "expand_prompt": _FLAG,
            "seed": _SEED,
            "style": Rule(
                "one_of",
                "auto",
                ("auto", "general", "realistic", "design", "render_3D", "anime"),
            ),
            "negative_prompt": _TEXT,
            "sync_mode": _FLAG,
        },
        "png",
        nsfw=False,
    ),
    "fal-ai/stable-diffusion-v35-large": Endpoint(
        {
            "prompt": _TEXT,
            "negative_prompt": _TEXT,
            "image_size": Rule("size", "landscape_4_3", least=512, most=1440),
            "num_inference_steps": Rule("whole", 28, least=1),
            "guidance_scale": Rule("number", 3.5, least=0),
            "seed": _SEED,
            "num_images": _COUNT,
            "enable_safety_checker": _FLAG,
            "output_format": _FORMAT,
            "sync_mode": _FLAG,
            "loras": _ANY,
            "controlnet": _ANY,
            "ip_adapter": _ANY,
        },
        "jpeg",
        by_area=True,
    ),
}


def detail(loc: list[str], kind: str, message: str, **extra: Any) -> dict[str, Any]:
    """One entry of a model error."""
    url = f"https://docs.fal.ai/errors#{kind}"
    return {"loc": ["body", *loc], "msg": message, "type": kind, "url": url} | extra


def _model(status: int, kind: str, message: str, **headers: str) -> ErrorRow:
    extra = {name.replace("_", "-"): value for name, value in headers.items()}
    entry = detail(["prompt"] if status == 422 else [], kind, message, input="a prompt")
    return ErrorRow(status, {"x-fal-error-type": kind, **extra}, {"detail": [entry]})


def _request(status: int, kind: str, message: str, **headers: str) -> ErrorRow:
    extra = {name.replace("_", "-"): value for name, value in headers.items()}
    body = {"detail": message, "error_type": kind}
    return ErrorRow(status, {"X-Fal-Error-Type": kind, **extra}, body)


def _ingress(status: int, title: str) -> ErrorRow:
    page = f"<html><head><title>{status} {title}</title></head><body>nginx</body></html>"
    return ErrorRow(status, {}, page)


_GATEWAY_ROWS: dict[str, ErrorRow] = {
    "unauthorized": ErrorRow(401, {}, {"detail": "Authentication is required to access this."}),
    "user_locked": ErrorRow(
        403,
        {},
        {
            "detail": "User is locked. Reason: Exhausted balance. Top up your balance at "
            "fal.ai/dashboard/billing."
        },
    ),
    "user_locked_other": ErrorRow(403, {}, {"detail": "User is locked. Reason: Account review."}),
    "not_found": ErrorRow(404, {}, {"detail": "Application not found"}),
    "still_in_progress": ErrorRow(400, {}, {"detail": "Request is still in progress"}),
    "rate_limited": ErrorRow(429, {}, {"detail": "Too many concurrent requests"}),
    "ingress_502": _ingress(502, "Bad Gateway"),
    "ingress_503": _ingress(503, "Service Temporarily Unavailable"),
    "ingress_504": _ingress(504, "Gateway Time-out"),
}
_VALIDATION = {
    "missing": "Field required",
    "literal_error": "Input should be 'jpeg' or 'png'",
    "greater_than_equal": "Input should be greater than or equal to 1",
    "less_than_equal": "Input should be less than or equal to 4",
    "multiple_of": "Input should be a multiple of 32",
    "one_of": "Input should be one of the allowed values",
    "sequence_too_long": "Input has too many items",
    "image_too_large": "The image is too large",
    "image_too_small": "The image is too small",
}
_RUNNER = (
    "runner_scheduling_failure",
    "runner_connection_timeout",
    "runner_disconnected",
    "runner_connection_refused",
    "runner_connection_error",
)
_POLICY = "The content could not be processed because it was flagged by a content checker."
_MODEL_ROWS: dict[str, ErrorRow] = {
    "content_policy_violation": _model(422, "content_policy_violation", _POLICY),
    "content_policy_violation_billed": _model(
        422, "content_policy_violation", _POLICY, x_fal_billable_units="1"
    ),
    # The model's own complaint comes first, the checker's after it.
    "content_policy_violation_second": ErrorRow(
        422,
        {"x-fal-error-type": "value_error"},
        {
            "detail": [
                detail(["image_url"], "value_error", "The image was not used", input=None),
                detail(["prompt"], "content_policy_violation", _POLICY, input="a prompt"),
            ]
        },
    ),
    "no_media_generated": _model(422, "no_media_generated", "No media was generated"),
    **{kind: _model(422, kind, message) for kind, message in _VALIDATION.items()},
    "downstream_service_error": _model(400, "downstream_service_error", "Downstream error"),
    "downstream_service_error_retryable": _model(
        400, "downstream_service_error", "Downstream error", X_Fal_Retryable="true"
    ),
    "internal_server_error": _model(500, "internal_server_error", "Internal server error"),
    "internal_server_error_final": _model(
        500, "internal_server_error", "Internal server error", X_Fal_Retryable="false"
    ),
    "downstream_service_unavailable": _model(
        500, "downstream_service_unavailable", "Downstream service unavailable"
    ),
    "generation_timeout": _model(504, "generation_timeout", "The generation took too long"),
    "request_timeout": _request(504, "request_timeout", "Request timed out"),
    "request_timeout_user": _request(
        504, "request_timeout", "Request timed out", X_Fal_Request_Timeout_Type="user"
    ),
    "startup_timeout": _request(504, "startup_timeout", "The runner did not start in time"),
    **{kind: _request(503, kind, kind.replace("_", " ").capitalize()) for kind in _RUNNER},
    "bad_request": _request(400, "bad_request", "Bad request"),
    "client_cancelled": _request(499, "client_cancelled", "Request was cancelled by the client"),
    "client_disconnected": _request(499, "client_disconnected", "The client disconnected"),
    "internal_error": _request(500, "internal_error", "Internal error"),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """A request that passed, with every default filled in."""

    endpoint: Endpoint
    n: int
    width: int
    height: int
    fmt: str
    inline: bool
    seed: int
    prompt: str
    stream: bool = False


@dataclass(slots=True)
class Job:
    """One request of the queue."""

    id: str
    app: str
    # Where the URLs of its answers point.
    base: str
    polls: int
    disturbance: Behaviour | None = None
    seen: bool = False
    answer: Answer | None = field(default=None, repr=False)
    over: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    @property
    def urls(self) -> dict[str, str]:
        """What names the request in every answer of the queue."""
        url = f"{self.base}/{self.app}/requests/{self.id}"
        return {
            "request_id": self.id,
            "response_url": url,
            "status_url": f"{url}/status",
            "cancel_url": f"{url}/cancel",
        }

    def end(self, answer: Answer) -> None:
        """Keep what the result is from now on."""
        self.answer = answer
        self.over.set()


class FalEmulator(Emulator):
    """POST {url}/{endpoint}[/stream], and the queue's submit, status, result and cancel.

    On the queue `gate` and `delay` hold back the run, not the submit answer; `polls` is the number
    of status calls answered 202 before COMPLETED. `step` moves the failure (drop, cut, error, ...)
    to the next submit, status or result answer, once. Errors of the model itself go to the result
    and stay there unless `step` says otherwise. `urls_on` is where the answer to a submit says that
    the request is to be followed, as with fal's backup domain or behind a proxy.
    """

    NAME = "fal"
    BASE_PATH = "/run"
    KNOBS = Emulator.KNOBS - {"bad_base64"} | {"polls", "step", "urls_on"}
    ERRORS: ClassVar[dict[str, ErrorRow]] = _GATEWAY_ROWS | _MODEL_ROWS
    BARE_ERRORS = frozenset({"ingress_502", "ingress_503", "ingress_504"})
    BILLED_ERRORS = frozenset({"content_policy_violation_billed"})

    @property
    def queue_url(self) -> str:
        """The base URL of the queue host."""
        return f"{self.origin}/queue"

    def reset(self) -> None:
        """Forget every record, behaviour and queued request."""
        super().reset()
        with self._changed:
            self._jobs: OrderedDict[str, Job] = OrderedDict()
            self._runs: Counter[str] = Counter()
            self._followups: list[tuple[str, str]] = []
            self._ignored: list[tuple[str, str]] = []
            self._cancelled = 0
            self._units = 0
            self._tasks: set[asyncio.Task[None]] = set()

    @property
    def runs(self) -> dict[str, int]:
        """How often each request id was run, sync and queue."""
        with self._changed:
            return dict(self._runs)

    @property
    def followups(self) -> list[tuple[str, str]]:
        """Method and path of every status, result and cancel call."""
        with self._changed:
            return list(self._followups)

    @property
    def ignored(self) -> list[tuple[str, str]]:
        """Endpoint and name of every input field the model does not know."""
        with self._changed:
            return list(self._ignored)

    @property
    def cancelled(self) -> int:
        """How many cancellations were accepted."""
        with self._changed:
            return self._cancelled

    @property
    def units(self) -> int:
        """The sum of the billable units."""
        with self._changed:
            return self._units

    def _routes(self, app: web.Application) -> None:
        request = "/queue/{owner}/{app}/requests/{id}"
        app.router.add_get(f"{request}/status", self._status)
        app.router.add_get(f"{request}/status/stream", self._status_stream)
        app.router.add_get(request, self._result)
        app.router.add_put(f"{request}/cancel", self._cancel)
        app.router.add_post("/run/{endpoint:.+}", self._generation)
        app.router.add_post("/queue/{endpoint:.+}", self._generation)

    def _headers(self) -> dict[str, str]:
        return {"x-fal-request-id": str(uuid.uuid4()), "x-fal-served-from": "emulator"}

    def _admit(self, headers: dict[str, str]) -> None:
        if headers.get("authorization") != f"Key {self.key}":
            raise Fault(self.ERRORS["unauthorized"])

    def _check(self, call: Call) -> Plan:
        self._admit(call.headers)
        path = call.path.split("/", 2)[2]
        name = path.removesuffix("/stream")
        if name not in ENDPOINTS:
            raise Fault(self.ERRORS["not_found"])
        return replace(self._validate(name, call.body), stream=name != path)

    def _validate(self, name: str, body: Any) -> Plan:
        if not isinstance(body, dict):
            raise Fault(ErrorRow(422, {}, {"detail": [detail([], "missing", "Field required")]}))
        endpoint = ENDPOINTS[name]
        with self._changed:
            self._ignored += [(name, one) for one in body if one not in endpoint.rules]
            del self._ignored[: -self._keep]
        return _plan(endpoint, body)

    def _work(self, plan: Plan, behaviour: Behaviour) -> Answer:
        answer = self._output(plan, behaviour, str(uuid.uuid4()))
        if not plan.stream or answer.status != 200:
            return answer
        return Answer(200, headers=answer.headers, events=[("", answer.body)])

    def _fail(self, plan: Plan | None, behaviour: Behaviour) -> Answer:
        answer = super()._fail(plan, behaviour)
        if behaviour.error in self.BILLED_ERRORS:
            self._charge(1)
        return answer

    def _charge(self, units: int) -> None:
        with self._changed:
            self._units += units

    def _output(self, plan: Plan, behaviour: Behaviour, request_id: str) -> Answer:
        """Run the model once."""
        with self._changed:
            self._runs[request_id] += 1
        if behaviour.refuse and not plan.endpoint.nsfw:
            row = self.ERRORS["content_policy_violation"]
            return Answer(row.status, row.body, {**row.headers, "x-fal-request-id": request_id})
        refused = min(behaviour.refuse or 0, plan.n)
        count = max(0, plan.n - behaviour.fewer)
        flags = [index >= plan.n - refused for index in range(count)]
        images = [self._image(plan, black, behaviour) for black in flags]
        area = -(-plan.width * plan.height // MEGAPIXEL) if plan.endpoint.by_area else 1
        self._charge(area * count)
        headers = {"x-fal-request-id": request_id, "x-fal-billable-units": str(area * count)}
        body: dict[str, Any] = {"images": images}
        if "seed" in plan.endpoint.rules:
            body["seed"] = plan.seed
        if plan.endpoint.nsfw:
            body |= {"timings": {}, "has_nsfw_concepts": flags, "prompt": plan.prompt}
        return Answer(200, body, headers)

    def _image(self, plan: Plan, black: bool, behaviour: Behaviour) -> dict[str, Any]:
        data = self._make(plan.width, plan.height, plan.fmt, black=black)
        kind = "image/svg+xml" if plan.fmt == "svg" else f"image/{plan.fmt}"
        if plan.inline:
            url = f"data:{kind};base64,{base64.b64encode(data).decode()}"
        else:
            url = self._host(data, plan.fmt, behaviour)
        image: dict[str, Any] = {"url": url, "content_type": kind}
        if plan.endpoint.nsfw:
            return image | {"width": plan.width, "height": plan.height}
        return image | {"file_name": f"image.{plan.fmt}", "file_size": len(data)}

    async def _serve(
        self, request: web.Request, call: Call, behaviour: Behaviour
    ) -> web.StreamResponse:
        if call.path.startswith("/run/"):
            return await super()._serve(request, call, behaviour)
        name = call.path.split("/", 2)[2]
        try:
            self._admit(call.headers)
            if name not in ENDPOINTS:
                raise Fault(self.ERRORS["not_found"])
        except Fault as fault:
            return await self._send(request, fault.answer, Behaviour())
        lasting = behaviour.step is None and behaviour.error in _MODEL_ROWS
        at_submit = behaviour.step == "submit" or (behaviour.step is None and not lasting)
        if at_submit and (behaviour.error or behaviour.drop == "before"):
            return await self._disturb(request, None, behaviour)
        job = Job(
            str(uuid.uuid4()),
            "/".join(name.split("/")[:2]),
            behaviour.urls_on or self.queue_url,
            behaviour.polls or 0,
        )
        if behaviour.step in ("status", "result"):
            job.disturbance = behaviour
        with self._changed:
            self._jobs[job.id] = job
            while len(self._jobs) > self._keep:
                self._jobs.popitem(last=False)
        await self._begin(job, name, call, behaviour, lasting)
        body = {"status": "IN_QUEUE", "queue_position": 0, "gateway_request_id": job.id, **job.urls}
        answer = Answer(200, body, {"x-fal-request-id": job.id})
        if behaviour.step != "submit":
            behaviour = _without_hold(behaviour)
        return await self._disturb(request, answer, behaviour if at_submit else Behaviour())

    async def _begin(
        self, job: Job, name: str, call: Call, behaviour: Behaviour, lasting: bool
    ) -> None:
        """Run the job now, or when its gate and delay are over."""

        epoch = self._epoch

        async def run() -> None:
            if behaviour.step is None:
                await self._hold(behaviour)
            if job.answer is not None or epoch != self._epoch:
                return
            try:
                plan = self._validate(name, call.body)
            except Fault as fault:
                job.end(fault.answer)
                return
            if lasting:
                with self._changed:
                    self._runs[job.id] += 1
                job.end(self._fail(plan, behaviour))
            else:
                job.end(self._output(plan, behaviour, job.id))

        if behaviour.step is None and (behaviour.gate or behaviour.delay):
            task = asyncio.create_task(run())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            await run()

    async def _disturb(
        self, request: web.Request, answer: Answer | None, behaviour: Behaviour
    ) -> web.StreamResponse:
        """Give the answer, or what the behaviour puts in its place."""
        await self._hold(behaviour)
        if behaviour.drop:
            return self._hang_up(request)
        if behaviour.error:
            answer = self._fail(None, behaviour)
        return await self._send(request, answer or Answer(200, {}), behaviour)

    def _follow(self, request: web.Request) -> Job:
        with self._changed:
            self._followups.append((request.method, request.path))
            del self._followups[: -self._keep]
            job = self._jobs.get(request.match_info["id"])
            self._changed.notify_all()
        self._admit({name.lower(): value for name, value in request.headers.items()})
        if job is None or job.app != f"{request.match_info['owner']}/{request.match_info['app']}":
            raise Fault(ErrorRow(404, {}, {"detail": "Request not found"}))
        return job

    def _once(self, job: Job, step: str) -> Behaviour:
        """The disturbance meant for this step, the first time the step is reached."""
        behaviour = job.disturbance
        if behaviour is None or behaviour.step != step:
            return Behaviour()
        job.disturbance = None
        return behaviour

    async def _status(self, request: web.Request) -> web.StreamResponse:
        try:
            job = self._follow(request)
        except Fault as fault:
            return await self._send(request, fault.answer, Behaviour())
        answer = Answer(*self._progress(job, request))
        return await self._disturb(request, answer, self._once(job, "status"))

    async def _status_stream(self, request: web.Request) -> web.StreamResponse:
        try:
            job = self._follow(request)
        except Fault as fault:
            return await self._send(request, fault.answer, Behaviour())
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", **self._headers()}
        )
        with contextlib.suppress(ConnectionError):
            await response.prepare(request)
            status = 202
            while status == 202:
                status, body = self._progress(job, request)
                await response.write(f"data: {json.dumps(body)}\n\n".encode())
                if status == 202 and job.polls <= 0:
                    await asyncio.wait_for(job.over.wait(), HOLD_LIMIT)
            await response.write_eof()
        return response

    @staticmethod
    def _progress(job: Job, request: web.Request) -> tuple[int, dict[str, Any]]:
        asked = request.query.get("logs", "").lower() in ("1", "true")
        line = {"message": "drawing", "level": "INFO", "source": "USER"}
        logs = [line | {"timestamp": "2026-11-28T11:00:00.000000"}] if asked else []
        if job.answer is None or job.polls > 0:
            job.polls -= job.polls > 0
            first, job.seen = not job.seen, True
            if first:
                return 202, {"status": "IN_QUEUE", **job.urls, "queue_position": 0}
            return 202, {"status": "IN_PROGRESS", **job.urls, "logs": logs}
        body: dict[str, Any] = {
            "status": "COMPLETED",
            **job.urls,
            "logs": logs,
            "metrics": {"inference_time": 0.01},
        }
        if job.answer.status >= 400:
            problem = job.answer.body["detail"]
            if isinstance(problem, list):
                body |= {"error": problem[0]["msg"], "error_type": problem[0]["type"]}
            else:
                body |= {"error": problem, "error_type": job.answer.body["error_type"]}
        return 200, body

    async def _result(self, request: web.Request) -> web.StreamResponse:
        try:
            job = self._follow(request)
        except Fault as fault:
            return await self._send(request, fault.answer, Behaviour())
        if job.answer is None or job.polls > 0:
            row = self.ERRORS["still_in_progress"]
            return await self._send(request, Answer(row.status, row.body), Behaviour())
        headers = {**job.answer.headers, "x-fal-request-id": job.id}
        answer = Answer(job.answer.status, job.answer.body, headers)
        return await self._disturb(request, answer, self._once(job, "result"))

    async def _cancel(self, request: web.Request) -> web.StreamResponse:
        try:
            job = self._follow(request)
        except Fault as fault:
            return await self._send(request, fault.answer, Behaviour())
        if job.answer is not None and job.polls <= 0:
            done = Answer(400, {"status": "ALREADY_COMPLETED"})
            return await self._send(request, done, Behaviour())
        with self._changed:
            self._cancelled += 1
        job.polls = 0
        if job.answer is None:
            row = self.ERRORS["client_cancelled"]
            job.end(Answer(row.status, row.body, row.headers))
        return await self._send(
            request, Answer(202, {"status": "CANCELLATION_REQUESTED"}), Behaviour()
        )


def _without_hold(behaviour: Behaviour) -> Behaviour:
    """The failure of one answer alone: what holds the run back does not hold the answer back."""
    return Behaviour(
        drop=behaviour.drop,
        cut=behaviour.cut,
        slow_body=behaviour.slow_body,
        content_type=behaviour.content_type,
        bad_json=behaviour.bad_json,
    )


def _plan(endpoint: Endpoint, body: dict[str, Any]) -> Plan:
    """Check every field as the model's schema does, and report all that is wrong."""
    wrong: list[dict[str, Any]] = []
    if "prompt" not in body:
        wrong.append(detail(["prompt"], "missing", "Field required", input=body))
    for name, rule in endpoint.rules.items():
        if body.get(name) is not None:
            wrong += _judge([name], rule, body[name])
    if wrong:
        headers = {"x-fal-error-type": wrong[0]["type"]}
        raise Fault(ErrorRow(422, headers, {"detail": wrong}))
    values = {
        name: rule.default if body.get(name) is None else body[name]
        for name, rule in endpoint.rules.items()
    }
    width, height = _size(endpoint, values)
    vector = str(values.get("style")).startswith("vector_illustration")
    return Plan(
        endpoint=endpoint,
        n=values.get("num_images", 1),
        width=width,
        height=height,
        fmt="svg" if vector else values.get("output_format", endpoint.fmt),
        inline=values.get("sync_mode", False),
        seed=SEED if values.get("seed") is None else values["seed"],
        prompt=body["prompt"],
    )


def _size(endpoint: Endpoint, values: dict[str, Any]) -> tuple[int, int]:
    if "aspect_ratio" in values:
        return ratio_size(values["aspect_ratio"], endpoint.edge, 32)
    size = values["image_size"]
    return PRESETS[size] if isinstance(size, str) else (size["width"], size["height"])


def _judge(loc: list[str], rule: Rule, value: Any) -> list[dict[str, Any]]:
    """What is wrong with one value."""
    if rule.kind == "any":
        return []
    if rule.kind == "size" and isinstance(value, dict):
        return _judge_edges(loc, rule, value)
    if rule.kind in ("one_of", "size"):
        allowed = rule.values or tuple(PRESETS)
        if value in allowed:
            return []
        expected = ", ".join(f"'{one}'" for one in allowed)
        extra = {"input": value, "ctx": {"expected": expected}}
        return [detail(loc, "literal_error", f"Input should be {expected}", **extra)]
    kinds: dict[str, tuple[tuple[type, ...], str]] = {
        "text": ((str,), "string_type"),
        "ratio": ((str,), "string_type"),
        "flag": ((bool,), "bool_type"),
        "whole": ((int,), "int_type"),
        "number": ((int, float), "float_type"),
    }
    types, kind = kinds[rule.kind]
    fits = isinstance(value, types) and isinstance(value, bool) == (rule.kind == "flag")
    if not fits:
        return [detail(loc, kind, "Input has the wrong type", input=value)]
    if rule.kind == "ratio" and not re.fullmatch(r"[1-9]\d?:[1-9]\d?", value):
        return [detail(loc, "value_error", "Invalid aspect ratio", input=value)]
    if rule.kind == "text":
        if rule.most is None or len(value) <= rule.most:
            return []
        return [detail(loc, "sequence_too_long", f"At most {rule.most} characters", input=value)]
    return [] if rule.kind in ("ratio", "flag") else _judge_range(loc, rule, value)


def _judge_range(loc: list[str], rule: Rule, value: float) -> list[dict[str, Any]]:
    if rule.least is not None and value < rule.least:
        message = f"Input should be greater than or equal to {rule.least}"
        return [detail(loc, "greater_than_equal", message, input=value, ctx={"ge": rule.least})]
    if rule.most is not None and value > rule.most:
        message = f"Input should be less than or equal to {rule.most}"
        return [detail(loc, "less_than_equal", message, input=value, ctx={"le": rule.most})]
    if value % rule.step and rule.step > 1:
        message = f"Input should be a multiple of {rule.step}"
        extra = {"input": value, "ctx": {"multiple_of": rule.step}}
        return [detail(loc, "multiple_of", message, **extra)]
    return []


def _judge_edges(loc: list[str], rule: Rule, value: dict[str, Any]) -> list[dict[str, Any]]:
    wrong: list[dict[str, Any]] = []
    edge_rule = Rule("whole", least=rule.least, most=rule.most, step=rule.step)
    for edge in ("width", "height"):
        if edge in value:
            wrong += _judge([*loc, edge], edge_rule, value[edge])
        else:
            wrong.append(detail([*loc, edge], "missing", "Field required", input=value))
    return wrong
