"""The sandbox: generates images for `ghub_sk_test_` keys; calls no provider, costs nothing.

Words in the prompt trigger the following, so that clients can test how they handle it:

    sandbox:refuse                        the prompt is refused
    sandbox:refuse=output                 the finished picture is refused
    sandbox:slow=5                        the picture takes five seconds
    sandbox:deliver=2                     only two of the pictures are delivered
    sandbox:error=provider_unavailable    that error; add @MODEL for one candidate of a list
"""

import asyncio
import hashlib
import io
import random
import re
import textwrap
import unicodedata
from collections.abc import AsyncIterator, Mapping

from PIL import Image as Pillow
from PIL import ImageDraw, ImageEnhance, ImageFont, ImageOps

from images.pixels.pictures import NotAPicture, Upload, shown
from images.pixels.turns import Crowded
from images.providers.base import ImageRequest, Item, PartialImage, Provider, Shortfall
from images.providers.errors import ProviderError, refused, rejected, unavailable
from images.providers.http import picture
from images.providers.ratios import edges

DIRECTIVE = re.compile(r"sandbox:(refuse|slow|deliver|error)(?:=([\w.]+))?(?:@(\S+))?")
LONGEST_SECONDS = 300.0
DEFAULT_SIZE = "1024x1024"
# Pixels merged into one in the first partial image; half as many in each that follows.
COARSEST = 32
CROWDED_SECONDS = 5.0
CROWDED = (
    "The sandbox is still generating your organization's earlier requests. Wait a moment, or "
    "request fewer or smaller images."
)
ERRORS = {
    "provider_unavailable": "The sandbox simulates a provider that is down.",
    "rate_limit_exceeded": "The sandbox simulates a rate limit.",
    "insufficient_balance": "The sandbox simulates an empty balance.",
    "guardrail_blocked": "The sandbox simulates a key's guardrail.",
    "model_not_found": "The sandbox simulates a model that is gone.",
    "invalid_request_error": "The sandbox simulates a value the provider does not accept.",
    "internal_error": "The sandbox simulates a fault on our side.",
}


class Sandbox(Provider):
    """Draws the prompt's words on a pattern that follows from prompt, seed and index.

    An edit has the first picture instead of the pattern, darker where it may be redrawn.
    """

    name = "sandbox"

    async def call(self, request: ImageRequest) -> AsyncIterator[Item]:
        wanted = {
            kind: value
            for kind, value, model in DIRECTIVE.findall(request.prompt)
            if model in ("", request.model)
        }
        await asyncio.sleep(_number(wanted.get("slow", ""), most=LONGEST_SECONDS))
        error, deliver = imitated(wanted, request.n)
        # Of a picture that is refused once it is finished, early views were seen.
        begun = request.n if wanted.get("refuse") == "output" else deliver
        try:
            with request.turns.reserved(work(request, begun)):
                for index in range(begun):
                    for step in range(request.partial_images):
                        view = await request.turns.run(draw, request, index, step)
                        yield PartialImage(picture(view).picture, step)
                    if index < deliver:
                        data = await request.turns.run(draw, request, index)
                        yield picture(data, index=index)
        except Crowded:
            crowded = ProviderError("rate_limit_exceeded", CROWDED, retry_after=CROWDED_SECONDS)
            error, deliver = crowded, 0
        if error is not None:
            # Yielded, not raised: an imitated failure must not open the circuit for everybody.
            yield Shortfall(error, request.n - deliver)


def work(request: ImageRequest, n: int) -> int:
    """Return the pixels that drawing n pictures of the request takes."""
    width, height = edges(request.size or DEFAULT_SIZE)
    inputs = [*request.images[:1], *([request.mask] if request.mask else [])]
    read = sum(one.width * one.height for one in inputs)
    return n * (request.partial_images + 1) * (width * height + read)


def imitated(wanted: Mapping[str, str], n: int) -> tuple[ProviderError | None, int]:
    """Return the error that the directives cause, and how many of n pictures come all the same."""
    if "refuse" in wanted:
        return refused("output" if wanted["refuse"] == "output" else "prompt"), 0
    if code := wanted.get("error"):
        if code in ERRORS:
            return ProviderError(code, ERRORS[code]), 0
        known = f"The sandbox knows these errors: {', '.join(sorted(ERRORS))}."
        return ProviderError("invalid_request_error", known, param="prompt"), 0
    deliver = int(_number(wanted["deliver"], most=n)) if "deliver" in wanted else n
    return (unavailable(detail="asked for"), deliver) if deliver < n else (None, n)


def draw(request: ImageRequest, index: int, step: int | None = None) -> bytes:
    """Return picture number `index` of the request, encoded; the same request, the same bytes.

    With a `step`, counted from 0, it is an early view: coarse at first, then finer.
    """
    width, height = edges(request.size or DEFAULT_SIZE)
    digest = hashlib.sha256(f"{request.prompt}\n{request.seed}\n{index}".encode()).digest()
    dice = random.Random(digest)
    hue = dice.randrange(360)
    if request.images:
        image = darkened(request.images[0], request.mask, (width, height))
    else:
        image = pattern((width, height), hue, dice)
    canvas = ImageDraw.Draw(image)
    size = max(12, min(width, height) // 18)
    font = ImageFont.load_default(size)
    # The built-in font has the basic letters only.
    plain = unicodedata.normalize("NFKD", request.prompt).encode("ascii", "ignore").decode()
    words = textwrap.wrap(plain, width=max(8, int(width / size * 1.6)), max_lines=6)
    lines = [*words, "", f"{request.model}  #{index + 1}", f"{width}x{height}  sandbox"]
    text = "\n".join(lines)
    x1, y1, x2, y2 = canvas.multiline_textbbox((size, size), text, font=font, spacing=size // 3)
    pad = size // 2
    panel = (x1 - pad, y1 - pad, x2 + pad, y2 + pad)
    canvas.rectangle(panel, fill=f"hsl({hue}, 60%, 10%)")
    canvas.multiline_text((size, size), text, font=font, fill="white", spacing=size // 3)
    if step is not None:
        cell = COARSEST >> step
        image = image.reduce(cell).resize(image.size, Pillow.Resampling.BILINEAR)
    out = io.BytesIO()
    image.save(out, (request.output_format or "png").upper(), **_options(request))
    return out.getvalue()


def pattern(size: tuple[int, int], hue: int, dice: random.Random) -> Pillow.Image:
    """Return a picture of dice-thrown shapes."""
    width, height = size
    image = Pillow.new("RGB", size, f"hsl({hue}, 45%, 20%)")
    canvas = ImageDraw.Draw(image)
    cell = max(16, min(width, height) // 12)
    for left in range(0, width, cell):
        for top in range(0, height, cell):
            shade = f"hsl({(hue + dice.randrange(-40, 40)) % 360}, 55%, {dice.randrange(18, 46)}%)"
            box = (left, top, left + cell - 1, top + cell - 1)
            (canvas.ellipse if dice.random() < 0.5 else canvas.rectangle)(box, fill=shade)
    return image


def darkened(first: Upload, mask: Upload | None, size: tuple[int, int]) -> Pillow.Image:
    """Return the picture, cut to the size; only where the mask is transparent is it darker.

    Raises ProviderError when one of them is broken behind its header.
    """
    light = _cut("image", first, size).convert("RGB")
    dark = ImageEnhance.Brightness(light).enhance(0.4)
    if mask is None:
        return dark
    return Pillow.composite(light, dark, _cut("mask", mask, size).getchannel("A"))


def _cut(name: str, upload: Upload, size: tuple[int, int]) -> Pillow.Image:
    try:
        return ImageOps.fit(shown(upload.read(), within=max(size)).convert("RGBA"), size)
    except NotAPicture as error:
        raise rejected(name, detail=str(error)) from error


def _options(request: ImageRequest) -> dict[str, int]:
    match request.output_format:
        case "jpeg" | "webp":
            quality = request.output_compression
            # WebP's quickest: half the time for a tenth more bytes. JPEG has no such thing.
            return {"quality": 90 if quality is None else max(1, quality), "method": 0}
        case _:
            return {"compress_level": 1}


def _number(text: str, *, most: float) -> float:
    try:
        return min(most, max(0.0, float(text)))
    except ValueError:
        return 0.0
