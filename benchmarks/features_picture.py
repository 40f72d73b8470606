"""Features of ten photos before and after a pretraining, and those of its teacher, as colours.

    python benchmarks/features_picture.py runs/backbone --data imagenette128 --out docs/pretraining_features.png

The run folder is one of ``linvit train --task pretrain``. "Before" is the same network with its weights newly drawn.
The photos are the first held-out one of each class. Colours are the first three principal components of the maps at one
stride, of all ten photos together, for each model by itself: compare what is told apart, not the colours themselves.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from linvit import load_model
from linvit.analysis import principal_colours
from linvit.data.images import find_images, load_image
from linvit.files import save_picture
from linvit.heads.features import bare, features, levels
from linvit.inference.probes import Extractor
from linvit.tasks.classification import create_network


def colours(model: Any, transform: Any, photos: list[Any], stride: int) -> torch.Tensor:
    """Return the colours of a model's maps of the photos ``[N, 3, h, w]``."""
    level = next(level for level in levels(bare(model)) if level.stride == stride)
    with torch.inference_mode():
        images = torch.stack([transform(photo) for photo in photos])
        return principal_colours(features(bare(model).eval(), images, [level.index])[1][0])


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder of a pretraining")
    parser.add_argument("--data", type=Path, required=True, help="photos in class folders, below val/")
    parser.add_argument("--size", type=int, default=192, help="height and width that the models see (192)")
    parser.add_argument("--stride", type=int, default=8, help="which maps: pixels for each of their positions (8)")
    parser.add_argument("--out", type=Path, required=True, help="write the picture here, as PNG")
    args = parser.parse_args()
    photos = [load_image(find_images([str(folder)])[0]) for folder in sorted((args.data / "val").iterdir())[:10]]
    settings = yaml.safe_load((args.run / "config.yaml").read_text())["model"]
    after, teacher = load_model(args.run), load_model(settings["teacher"])
    torch.manual_seed(0)
    before = create_network(settings["name"], 0, False, settings["model_args"])
    seen, taught = (Extractor(model, img_size=args.size).transform for model in (after, teacher))
    rows = {
        "before": colours(before, seen, photos, args.stride),
        "after": colours(after, seen, photos, args.stride),
        "teacher": colours(teacher, taught, photos, args.stride),
    }
    figure = Figure(figsize=(len(photos), len(rows) + 1), dpi=110, layout="constrained")
    grid = figure.subplots(len(rows) + 1, len(photos))
    for column, photo in enumerate(photos):
        shown = [photo.resize((args.size, args.size)), *(row[column].permute(1, 2, 0).numpy() for row in rows.values())]
        for axes, picture, title in zip(grid[:, column], shown, ["photo", *rows], strict=True):
            axes.imshow(picture, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            if column == 0:
                axes.set_ylabel(title)
    FigureCanvasAgg(figure)
    save_picture(figure, args.out)


if __name__ == "__main__":
    main()
