"""The sizes that models draw: what a request may name, and what is drawn for it."""


def as_they_are(*sizes: str) -> dict[str, str]:
    return {size: size for size in sizes}


GPT_SIZES = as_they_are("1024x1024", "1536x1024", "1024x1536") | {
    "1792x1024": "1536x1024",
    "1024x1792": "1024x1536",
}
DALLE_SIZES = as_they_are("1024x1024", "1792x1024", "1024x1792") | {
    "1536x1024": "1792x1024",
    "1024x1536": "1024x1792",
}
# fmt: off
# Imagen's five shapes at 1K, and at 2K, which costs the same.
IMAGEN_SIZES = as_they_are(
    "1024x1024", "896x1280", "1280x896", "768x1408", "1408x768",
    "2048x2048", "1792x2560", "2560x1792", "1536x2816", "2816x1536",
) | {
    "1536x1024": "1280x896", "1024x1536": "896x1280",
    "1792x1024": "1408x768", "1024x1792": "768x1408",
}
GEMINI_SIZES = as_they_are(
    "1024x1024", "848x1264", "1264x848", "896x1200", "1200x896", "928x1152", "1152x928",
    "768x1376", "1376x768", "1584x672",
) | {
    "1536x1024": "1264x848", "1024x1536": "848x1264",
    "1792x1024": "1376x768", "1024x1792": "768x1376",
}
GROK_2_SIZES = {
    "1024x768": "1024x768", "1024x1024": "1024x768", "1536x1024": "1024x768",
    "1792x1024": "1024x768", "1024x1536": "1024x768", "1024x1792": "1024x768",
}
# The pixels of a ratio are not published; what is delivered is read from the picture.
GROK_SIZES = as_they_are(
    "1024x1024", "1360x768", "768x1360", "1248x832", "832x1248", "1184x880", "880x1184",
) | {
    "1536x1024": "1248x832", "1024x1536": "832x1248",
    "1792x1024": "1360x768", "1024x1792": "768x1360",
}
# Billed by the megapixel, rounded up: none but the square is above one.
FLUX_SIZES = as_they_are(
    "1024x1024", "768x1024", "1024x768", "576x1024", "1024x576", "1152x768", "768x1152",
    "1280x736", "736x1280",
) | {
    "1536x1024": "1152x768", "1024x1536": "768x1152",
    "1792x1024": "1280x736", "1024x1792": "736x1280",
}
# The pixels of a ratio are not published; what is delivered is read from the picture.
ULTRA_SIZES = as_they_are(
    "2048x2048", "2720x1536", "1536x2720", "2496x1664", "1664x2496", "2368x1760", "1760x2368",
    "3136x1344", "1344x3136",
) | {
    "1024x1024": "2048x2048",
    "1536x1024": "2496x1664", "1024x1536": "1664x2496",
    "1792x1024": "2720x1536", "1024x1792": "1536x2720",
}
RECRAFT_SIZES = as_they_are(
    "1024x1024", "1365x1024", "1024x1365", "1536x1024", "1024x1536", "1792x1024", "1024x1792",
)
IDEOGRAM_SIZES = as_they_are(
    "1024x1024", "1376x768", "768x1376", "1248x832", "832x1248", "1184x896", "896x1184",
) | {
    "1536x1024": "1248x832", "1024x1536": "832x1248",
    "1792x1024": "1376x768", "1024x1792": "768x1376",
}
