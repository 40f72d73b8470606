"""One page that shows what was seen of a model: HTML with its pictures inside, for a browser without a network."""

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image

from linvit.analysis.figures import short
from linvit.analysis.inspection import Inspection
from linvit.files import atomic_write

__all__ = ["write_report"]

STYLE = """
:root { color-scheme: light }
body { font: 16px/1.5 system-ui, sans-serif; color: #1f2937; max-width: 62rem; margin: 0 auto; padding: 1rem 1rem 4rem }
h1 { font-size: 1.6rem; margin-bottom: 0.2rem } h2 { font-size: 1.2rem; margin-top: 2.5rem }
p.note { color: #4b5563; max-width: 46rem } figure { margin: 1rem 0; overflow-x: auto }
figure img { max-width: 100%; height: auto; min-width: 20rem } figcaption { color: #4b5563; font-size: 0.9rem }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-size: 0.85rem; white-space: nowrap }
th, td { text-align: right; padding: 0.2rem 0.6rem; border-bottom: 1px solid #e5e7eb }
th { color: #4b5563; white-space: normal; vertical-align: bottom }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left }
"""

WIDTH = 1400  # of pictures in the page; those for print lie beside it

HOW = (
    "Attention is read off row by row or summed over queries; no N x N matrix is made. Under a map stands between "
    "which multiples of its mean it lies: where both are near 1, the map is nearly even, however strong its colours."
)
MEANINGS = {
    "overview": "Grad-CAM of the most likely class; what the sharpest attention attends to and what it mixes into the "
    "marked pixel; which pixels the marked position of the last map depends on (cube roots of gradients).",
    "layers": "Layer by layer: where the marked pixel looks (mean over heads), what the layer really mixes into it "
    "with its local part (mean size over channels), and what all pixels together attend to.",
    "heads": "Where each head looks from the marked pixel, in the sharpest layer.",
}


def write_report(
    path: Path,
    model: str,
    inspections: Sequence[tuple[str, Inspection, dict[str, Path]]],
    common: Sequence[tuple[str, Path]],
) -> None:
    """Write the page.

    Args:
        path: The file to write.
        model: What the model is called.
        inspections: For each image its name, what was seen, and its pictures by the names of :data:`MEANINGS`.
        common: Pictures of all images together, each with what it shows.
    """
    first = inspections[0][1]
    count = f"{len(inspections)} images" if len(inspections) > 1 else "one image"
    parts = [f"<h1>Inside {escape(model)}</h1>"]
    parts.append(f'<p class="note">{len(first.layers)} attention layers on {count}. {HOW}</p>')
    parts.append("<h2>Focus, rank and reach</h2>")
    parts += [_figure(picture, text) for text, picture in common]
    parts.append(_table([inspection for _, inspection, _ in inspections]))
    for name, _, pictures in inspections:
        parts.append(f"<h2>{escape(name)}</h2>")
        parts += [_figure(picture, MEANINGS[kind]) for kind, picture in pictures.items()]
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Inside {escape(model)}</title><style>{STYLE}</style></head>\n<body>\n"
    )
    with atomic_write(path) as temporary:
        temporary.write_text(page + "\n".join(parts) + "\n</body></html>\n", encoding="utf-8")


def _figure(picture: Path, text: str) -> str:
    with Image.open(picture) as opened:
        shown = opened.convert("RGB")
    shown.thumbnail((WIDTH, 4 * WIDTH), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    shown.quantize(256).save(file, format="PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    image = f'<img alt="{escape(text)}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{escape(text)}</figcaption></figure>"


def _table(inspections: Sequence[Inspection]) -> str:
    heads = ["layer", "mechanism", "grid", "heads", "entropy, nats", "highest", "distance, px", "rank", "effective"]
    heads += ["rank, with local part", "effective, with it", "full rank"]
    rows = []
    for i, layer in enumerate(inspections[0].layers):
        alike = [each.layers[i].numbers() for each in inspections]
        mixed = [row["rank_mixed"] for row in alike]
        cells = [escape(short(layer.name)), layer.mechanism, f"{layer.grid[0]}x{layer.grid[1]}", str(layer.heads)]
        cells += [f"{_mean([row[key] for row in alike]):.2f}" for key in ("entropy", "entropy_highest")]
        cells.append(f"{_mean([row['distance'] for row in alike]):.1f}")
        cells += [f"{_mean([row['rank'][key] for row in alike]):.1f}" for key in ("numerical", "effective")]
        cells += [
            f"{_mean([row[key] for row in mixed]):.1f}" if mixed[0] else "-" for key in ("numerical", "effective")
        ]
        cells.append(str(alike[0]["rank"]["full"]))
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "<tr>" + "".join(f"<th>{text}</th>" for text in heads) + "</tr>"
    return f'<div class="scroll"><table>{head}{"".join(rows)}</table></div>'


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
