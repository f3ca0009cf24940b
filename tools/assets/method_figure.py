"""`python -m tools.assets.method_figure`: draw docs/pictures/method.svg, a photo's way to the video."""

from xml.sax.saxutils import escape

from ..environment import ROOT

FIGURE = ROOT / "docs" / "pictures" / "method.svg"
WIDTH, HEIGHT = 1180, 470
GREY, BLUE, ORANGE, GREEN = "#eceff1", "#d6e6f5", "#fbe3cc", "#dcefd8"  # data, 2-D, 3-D, video

# x, y, width, height, fill, title, line below
BOXES = [
    (20, 150, 110, 70, GREY, "photo", "one face"),
    (170, 150, 120, 70, GREY, "crop", "512 × 512, upright"),
    (340, 60, 150, 70, BLUE, "image tower", "EVA02-CLIP, frozen"),
    (540, 60, 160, 70, BLUE, "face abstractor", "C-Abstractor, MLP"),
    (340, 250, 150, 70, ORANGE, "DECA → FLAME", "shape, a mesh"),
    (540, 250, 160, 70, ORANGE, "spiral network", "queries + depth, fusion"),
    (540, 370, 160, 60, ORANGE, "reducer", "1-D convolutions"),
    (760, 60, 140, 70, BLUE, "face tokens", "36 × 2048"),
    (760, 365, 140, 70, ORANGE, "vertex tokens", "79 × 2048"),
    (950, 200, 190, 110, GREEN, "video DiT, 42 blocks", "after each: + attention"),
    (950, 370, 190, 60, GREEN, "VAE decoder", "49 × 480 × 720"),
    (950, 60, 190, 70, GREY, "prompt, first frame", "T5; the crop's latents; noise"),
]
# points of each arrow
ARROWS = [
    [(130, 185), (170, 185)],
    [(290, 170), (315, 170), (315, 95), (340, 95)],
    [(75, 220), (75, 285), (340, 285)],
    [(490, 95), (540, 95)],
    [(490, 285), (540, 285)],
    [(700, 95), (760, 95)],
    [(620, 130), (620, 250)],
    [(620, 320), (620, 370)],
    [(700, 400), (760, 400)],
    [(830, 130), (830, 245), (950, 245)],
    [(830, 365), (830, 270), (950, 270)],
    [(1045, 130), (1045, 200)],
    [(1045, 310), (1045, 370)],
]


def draw() -> str:
    """The figure as SVG."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">',
        "<title>From a photo to the video: a 2-D and a 3-D branch, injected into every block of the DiT</title>",
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 10 5 0 10z" fill="#455a64"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for points in ARROWS:
        line = " ".join(f"{x},{y}" for x, y in points)
        parts.append(
            f'<polyline points="{line}" fill="none" stroke="#455a64" stroke-width="2" marker-end="url(#tip)"/>'
        )
    for x, y, width, height, fill, title, below in BOXES:
        middle = x + width / 2
        parts.append(f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="{fill}" stroke="#90a4ae"/>')
        for text, size, offset in ((title, 15, -4), (below, 12, 16)):
            parts.append(
                f'<text x="{middle:g}" y="{y + height / 2 + offset:g}" font-size="{size}" text-anchor="middle">'
                f"{escape(text)}</text>"
            )
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    FIGURE.write_text(draw(), "utf-8")
