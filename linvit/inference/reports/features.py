"""How well frozen features tell classes apart, by nearest neighbours and a linear classifier, and at what cost."""

import time
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from linvit.checkpoints import load_model
from linvit.data.datasets import ImageSet, collate
from linvit.data.parts import HELD_OUT
from linvit.data.sources import Kind, open_source
from linvit.inference.base import Report, Show, plainly
from linvit.inference.probes import Extracted, Extractor, knn_votes, linear_probe

__all__ = ["evaluate"]

EMBEDDED = "mnist5k"


def evaluate(
    model: str,
    data: str,
    *,
    untrained: bool = False,
    device: str = "auto",
    precision: str = "float32",
    img_size: int | None = None,
    batch_size: int | None = None,
    workers: int = 0,
    strict: bool = False,
    show: Show = plainly,
    source: Kind = "auto",
    knn: bool = False,
    linear: bool = False,
    stage: int | None = None,
    neighbours: int = 20,
    temperature: float = 0.07,
    epochs: int = 30,
) -> Report:
    """Judge the features of a model on a data set with classes; the model's own classes play no part.

    Args:
        model: As for :func:`linvit.load_model`; of a detector or a segmentation network, its backbone is judged.
        data: A folder of class folders, shards, a data set of Hugging Face, or ``mnist5k``, with a part to know.
        untrained: Take random weights for a registered name.
        device: As for :class:`linvit.inference.probes.Extractor`, with ``precision``, ``img_size`` and ``stage``.
        precision: As there.
        img_size: As there.
        batch_size: Images at a time.
        workers: Processes that load images.
        strict: Raise on an unreadable image instead of leaving it out.
        show: Shows how far it has come.
        source: What ``data`` names.
        knn: Let the nearest neighbours vote (:func:`linvit.inference.probes.knn_votes`).
        linear: Train a linear classifier (:func:`linvit.inference.probes.linear_probe`).
        stage: As for the extractor.
        neighbours: How many vote.
        temperature: The smaller, the more the nearest count.
        epochs: Of the linear classifier.

    Raises:
        ValueError: A setting is wrong, or the data do not have the layout.
        OSError: The data are not there.
    """
    extractor = Extractor(load_model(model, untrained), stage, device, precision, img_size)
    opened = open_source(source, None if data == EMBEDDED else data, HELD_OUT)
    known = opened.train(extractor.transform, strict)
    if isinstance(known, ImageSet):
        known.replace_unreadable = False

    def extract(dataset: Any, part: str) -> Extracted:
        loader: Any = DataLoader(dataset, batch_size or 64, num_workers=workers, collate_fn=collate)
        return extractor.extract(show(loader, len(loader), f"features of the {part} part"))

    bank = extract(known, "training")
    queries = extract(opened.held_out(extractor.transform, strict), "held-out")
    classes, seconds = len(opened.classes), bank.seconds + queries.seconds
    record: dict[str, Any] = {
        "model": model,
        "data": data,
        "stage": extractor.stage,
        "width": bank.features.shape[1],
        "images": {"train": len(bank.features), "val": len(queries.features)},
        "classes": classes,
        "img_size": list(extractor.input_config["input_size"][1:]),
        "precision": precision,
        "device": str(extractor.device),
        "feature_bytes": bank.bytes + queries.bytes,
        "feature_seconds": seconds,
        "images_per_second": (len(bank.features) + len(queries.features)) / seconds,
    }
    if knn:
        start = time.perf_counter()
        votes = knn_votes(bank.features, bank.targets, queries.features, classes, neighbours, temperature)
        record["knn"] = _accuracies(votes, queries.targets) | {
            "neighbours": neighbours,
            "temperature": temperature,
            "seconds": time.perf_counter() - start,
        }
    if linear:
        start = time.perf_counter()
        found = linear_probe(bank.features, bank.targets, queries.features, classes, epochs=epochs)
        record["linear"] = _accuracies(found.logits, queries.targets) | {
            "lr": found.lr,
            "top1_by_lr_on_a_tenth_of_train": {f"{lr:g}": top1 for lr, top1 in found.held_out_top1.items()},
            "epochs": epochs,
            "seconds": time.perf_counter() - start,
        }
    unreadable = bank.unreadable + queries.unreadable
    record["unreadable"] = unreadable
    return Report(record, [_words(record)], unreadable)


def _accuracies(scores: Tensor, targets: Tensor) -> dict[str, float]:
    order = scores.topk(min(5, scores.shape[1]), dim=1).indices
    right = order == targets[:, None]
    return {"top1": float(right[:, 0].float().mean()), "top5": float(right.any(dim=1).float().mean())}


def _words(record: dict[str, Any]) -> dict[str, str]:
    images = record["images"]
    counts = f"{images['train']:,} known images, {images['val']:,} held out, {record['classes']} classes"
    stage = "pooled" if record["stage"] is None else f"of stage {record['stage']}, averaged over the image"
    words = {
        "model": record["model"],
        "data": f"{record['data']} ({counts})",
        "features": f"{record['width']:,} {stage}, at {'x'.join(map(str, record['img_size']))} pixels",
        "precision": f"{record['precision']} on {record['device']}",
    }
    for name, heading in {"knn": "kNN", "linear": "linear"}.items():
        if found := record.get(name):
            how = f"{found['neighbours']} neighbours" if name == "knn" else f"learning rate {found['lr']:g}"
            words[f"{heading} top-1"] = f"{found['top1']:.2%}"
            words[f"{heading} top-5"] = f"{found['top5']:.2%}"
            words[f"{heading} by"] = f"{how}, {found['seconds']:.1f} s"
    words["memory"] = f"{record['feature_bytes'] / 1e6:.1f} MB of features"
    words["time"] = f"{record['feature_seconds']:.1f} s for the features ({record['images_per_second']:.1f} images/s)"
    return words
