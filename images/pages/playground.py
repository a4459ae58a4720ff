"""The playground: one prompt, several models side by side."""

import secrets
from datetime import UTC
from typing import Any, cast

from django import forms
from django.conf import settings
from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.utils.translation import gettext as _now
from django.utils.translation import gettext_lazy as _
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from accounts.access import MemberRequest, Permission, member
from billing.spending import ledger
from billing.templatetags.amounts import dollars
from geekhub.lib import money
from geekhub.lib.ids import REQUEST_ID
from images.catalog.model import MAX_N, MAX_PROMPT
from images.catalog.parameters import AUTO, MAX_SEED, PARAMETERS
from images.catalog.rows import CATALOG
from images.drawing.gateway import gateway_of
from images.drawing.request import GenerationRequest
from images.models import Generation
from images.pages import playing
from images.pages.playing import MAX_MODELS, Offer
from images.pages.snippets import snippets
from images.pages.words import OURS, Refused, explain, refusal

CHOSEN = 3


class PlaygroundForm(forms.Form):
    """What to draw, and with which of the models on offer."""

    run = forms.RegexField(r"^[0-9a-f]{16,64}$", widget=forms.HiddenInput)
    prompt = forms.CharField(
        label=_("Prompt"),
        max_length=MAX_PROMPT,
        widget=forms.Textarea(
            attrs={"rows": 4, "placeholder": _("A lighthouse at dusk, its beam on the waves")}
        ),
    )
    models = forms.MultipleChoiceField(
        label=_("Models"),
        error_messages={"required": _("Choose at least one model.")},
    )
    size = forms.ChoiceField(label=_("Size"), initial=AUTO)
    n = forms.TypedChoiceField(
        label=_("Images per model"),
        coerce=int,
        choices=[(str(n), str(n)) for n in range(1, MAX_N + 1)],
        initial="1",
    )
    quality = forms.ChoiceField(
        label=_("Quality"),
        required=False,
        choices=[
            ("", _("model default")),
            ("standard", _("standard")),
            ("hd", _("HD")),
            ("low", _("low")),
            ("medium", _("medium")),
            ("high", _("high")),
        ],
    )
    seed = forms.IntegerField(
        label=_("Seed"),
        required=False,
        min_value=0,
        max_value=MAX_SEED,
        help_text=_("The same seed gives similar images, if the model supports it."),
    )
    sandbox = forms.BooleanField(
        label=_("Sandbox: free placeholder images, no provider is called"), required=False
    )

    def __init__(self, *args: Any, offers: list[Offer], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        choices = [(offer.model.id, offer.model.name) for offer in offers]
        cast(forms.MultipleChoiceField, self.fields["models"]).choices = choices
        cast(forms.ChoiceField, self.fields["size"]).choices = [
            (AUTO, _("model default")),
            *((size, size.replace("x", " × ")) for size in playing.sizes()),
        ]

    def clean_prompt(self) -> str:
        """Return the text with one character a line end, as its author counts."""
        return str(self.cleaned_data["prompt"]).replace("\r\n", "\n")

    def clean_models(self) -> list[str]:
        """Return up to nine ids."""
        chosen = list(dict.fromkeys(self.cleaned_data["models"]))
        if len(chosen) > MAX_MODELS:
            raise forms.ValidationError(_now("Choose up to %d models.") % MAX_MODELS)
        return chosen

    def request_for(self, model: str) -> GenerationRequest:
        """Return the API's request of one model."""
        asked = {
            name: value
            for name, value in self.cleaned_data.items()
            if name in PARAMETERS and value not in (None, "", *PARAMETERS[name].neutral)
        }
        return GenerationRequest(models=(model,), listed=False, **asked)


@require_http_methods(["GET", "HEAD", "POST"])
@member(Permission.DRAW)
def index(request: MemberRequest) -> HttpResponse:
    """Show the form and what was drawn last; a POST, of a browser without scripts, draws."""
    offers = _offers(request)
    form = PlaygroundForm(request.POST or None, initial=_initial(request, offers), offers=offers)
    if request.method == "POST" and form.is_valid() and _is_covered(request, form, offers):
        for model in form.cleaned_data["models"]:
            drawn = _start(request, form, model)
            if isinstance(drawn, Refused):
                messages.error(request, f"{model}: {drawn.words} {drawn.detail}".rstrip())
        return redirect("playground")
    return _page(request, form, offers)


def _offers(request: MemberRequest) -> list[Offer]:
    return playing.offers(gateway_of(request), request.access.organization)


def _page(request: MemberRequest, form: PlaygroundForm, offers: list[Offer]) -> HttpResponse:
    organization = request.access.organization
    latest = [_told(row) for row in playing.latest(organization, request.access.user)]
    chosen = form["models"].value() or []
    context = {
        "form": form,
        "offers": [(offer, _is_over(offer)) for offer in offers],
        "able": any(offer.off is None for offer in offers),
        "chosen": chosen,
        "total_usd": money.to_usd(_total(form, offers, chosen)),
        "available_micro": ledger.balance(organization).available_micro,
        "results": latest,
        "running": any(row["generation"].status == "running" for row in latest),
        "most": MAX_MODELS,
    }
    status = 422 if form.errors else 200
    return render(request, "images/playground/page.html", context, status=status)


def _initial(request: HttpRequest, offers: list[Offer]) -> dict[str, Any]:
    able = [offer.model.id for offer in offers if offer.off is None]
    served = [offer.model.id for offer in offers if not _is_over(offer)]
    asked = [model for model in request.GET.getlist("model") if model]
    drawing = [model for model in served if model in able]
    return {
        "run": secrets.token_hex(16),
        "models": asked or (drawing or served)[:CHOSEN],
        # Where no provider is set up, only test pictures come out.
        "sandbox": not able,
    }


def _is_over(offer: Offer) -> bool:
    """Tell whether its provider has switched the model off, so that it can only fail."""
    off = offer.model.upstream_off
    return off is not None and off <= timezone.localdate(timezone=UTC)


def _total(form: PlaygroundForm, offers: list[Offer], chosen: list[str]) -> int:
    if form["sandbox"].value():
        return 0
    n = str(form["n"].value() or "1")
    each = sum(offer.price_micro for offer in offers if offer.model.id in chosen)
    return each * int(n) if n.isdecimal() else 0


@require_POST
@member(Permission.DRAW)
def draw(request: MemberRequest) -> HttpResponse:
    """Start one model; return its part of the page, which says that it is running."""
    form = PlaygroundForm(request.POST, offers=_offers(request))
    if not form.is_valid():
        return render(request, "images/playground/errors.html", {"form": form}, status=422)
    model = form.cleaned_data["models"][0]
    drawn = _start(request, form, model)
    if isinstance(drawn, Refused):
        answer = render(
            request, "images/playground/refused.html", {"model": model, "refused": drawn}
        )
    else:
        told = [_told(row) for row in _rows(request, [drawn.request_id])]
        answer = render(request, "images/playground/results.html", {"results": told})
    return _with_balance(request, answer)


def _is_covered(request: MemberRequest, form: PlaygroundForm, offers: list[Offer]) -> bool:
    """Tell whether all of it can be paid; if not, the form says so, and nothing is drawn."""
    total = _total(form, offers, form.cleaned_data["models"])
    left = ledger.balance(request.access.organization).available_micro
    if total == 0 or total <= left:
        return True
    text = _now("Not enough balance: this costs %(total)s and %(left)s is available.")
    form.add_error("models", text % {"total": dollars(total), "left": dollars(left)})
    return False


def _with_balance(request: MemberRequest, answer: HttpResponse) -> HttpResponse:
    """Return the results with what is available now, for the line of the price."""
    account = ledger.balance(request.access.organization)
    answer["X-Available-Micro"] = str(account.available_micro)
    return answer


def _start(request: MemberRequest, form: PlaygroundForm, model: str) -> Generation | Refused:
    """Start one model; return its row, or why it was not let in."""
    gateway = gateway_of(request)
    if gateway is None:
        return Refused(OURS)
    try:
        return playing.start(
            gateway,
            request.access.organization,
            request.access.user,
            form.request_for(model),
            sandbox=form.cleaned_data["sandbox"],
            run=form.cleaned_data["run"],
        )
    except Exception as error:
        refused = refusal(error)
        if refused is None:
            raise
        return refused


@require_GET
@member(Permission.DRAW)
def results(request: MemberRequest) -> HttpResponse:
    """Return the parts of the page for the requests named by `id`, as they stand now."""
    wanted = list(dict.fromkeys(request.GET.getlist("id")))
    if not 0 < len(wanted) <= MAX_MODELS or not all(map(REQUEST_ID.fullmatch, wanted)):
        raise Http404
    rows = _rows(request, wanted)
    if len(rows) < len(wanted):
        raise Http404
    context = {"results": [_told(row) for row in rows]}
    return _with_balance(request, render(request, "images/playground/results.html", context))


def _rows(request: MemberRequest, request_ids: list[str]) -> list[Generation]:
    return list(playing.results(request.access.organization, request_ids))


def _told(row: Generation) -> dict[str, Any]:
    """Return what the page says of a request."""
    model = row.model or row.requested[0]
    known = CATALOG.get(model)
    return {
        "generation": row,
        "images": list(row.images.all()),
        "model": model,
        "name": known.name if known else model,
        "age": round((timezone.now() - row.created_at).total_seconds()),
        "usual_seconds": known.p50_seconds if known else 10,
        "seconds": None if row.latency_ms is None else f"{row.latency_ms / 1000:.1f}",
        "words": explain(row.error_code) if row.error_code else "",
    }


@require_POST
@member(Permission.DRAW)
def code(request: MemberRequest) -> HttpResponse:
    """Return the form as code; nothing while it is not complete."""
    form = PlaygroundForm(request.POST, offers=_offers(request))
    if not form.is_valid():
        return HttpResponse(status=204)
    models = form.cleaned_data["models"]
    programs = snippets(
        form.request_for(models[0]),
        models,
        origin=settings.PUBLIC_URL,
        sandbox=form.cleaned_data["sandbox"],
    )
    return render(request, "images/playground/code.html", {"snippets": programs})
