"""Predict any number of images: decoded beside the network, in batches of one size, with little in memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Generic

from PIL import Image

from linvit.data.images import UnreadableImage, load_image
from linvit.inference.base import P, Predictor, Prepared

__all__ = ["Source", "open_image", "predict_all"]

Source = Path | tuple[str, Image.Image]
"""An image file, or a name and an image."""


def open_image(source: Source) -> tuple[str, Image.Image]:
    """Return what an image is called, and the image.

    Raises:
        UnreadableImage: It cannot be read.
    """
    return source if isinstance(source, tuple) else (str(source), load_image(source))


def predict_all(
    predictor: Predictor[P, Any],
    sources: Iterable[Source],
    batch_size: int | None = None,
    workers: int = 2,
    passed_over: Callable[[UnreadableImage], None] | None = None,
) -> Iterator[tuple[Source, P | None]]:
    """Predict images in their order.

    Threads decode and preprocess them beside the network (Pillow and torch work without Python's lock). Those that the
    network sees in one size are predicted together. At most four batches are in memory at a time, however many images
    and sizes there are; decoded images are not kept.

    Args:
        predictor: What predicts.
        sources: The images.
        batch_size: Images at a time; None for what suits the task.
        workers: Threads that decode.
        passed_over: Is told of an image that cannot be read, which then has None for its prediction; None to raise.

    Yields:
        Each source with its prediction.

    Raises:
        UnreadableImage: An image cannot be read, and nobody wants to be told.
    """
    size = batch_size or predictor.batch_size
    waiting: deque[tuple[Source, _Slot[P]]] = deque()  # in order, from the first that is not given out
    groups: dict[Any, list[_Slot[P]]] = {}  # by size, from the oldest

    def flush(key: Any) -> None:
        slots = groups.pop(key)
        found = predictor.predict_batch([slot.image for slot in slots if slot.image is not None])
        for slot, prediction in zip(slots, found, strict=True):
            slot.prediction, slot.image, slot.done = prediction, None, True

    for source, image in _prepared(predictor, sources, size, workers):
        slot: _Slot[P] = _Slot()
        waiting.append((source, slot))
        if isinstance(image, UnreadableImage):
            if passed_over is None:
                raise image
            passed_over(image)
            slot.done = True
        else:
            slot.image = image
            group = groups.setdefault(image.key, [])
            group.append(slot)
            if len(group) == size:
                flush(image.key)
        if len(waiting) >= 3 * size and groups:
            flush(next(iter(groups)))
        while waiting and waiting[0][1].done:
            first, ready = waiting.popleft()
            yield first, ready.prediction
    while groups:
        flush(next(iter(groups)))
    for source, slot in waiting:
        yield source, slot.prediction


class _Slot(Generic[P]):
    """The place of one image: preprocessed, then predicted or passed over."""

    def __init__(self) -> None:
        self.image: Prepared | None = None
        self.prediction: P | None = None
        self.done = False


def _prepared(
    predictor: Predictor[Any, Any], sources: Iterable[Source], ahead: int, workers: int
) -> Iterator[tuple[Source, Prepared | UnreadableImage]]:
    """Give out preprocessed images in order; threads work so many images ahead."""

    def prepare(source: Source) -> Prepared | UnreadableImage:
        try:
            return predictor.prepare(open_image(source)[1])
        except UnreadableImage as error:
            return error

    pending: deque[tuple[Source, Future[Prepared | UnreadableImage]]] = deque()
    pool = ThreadPoolExecutor(max(1, workers), thread_name_prefix="decode")
    try:
        remaining = iter(sources)
        pending.extend((source, pool.submit(prepare, source)) for source in islice(remaining, max(ahead, 2 * workers)))
        while pending:
            source, image = pending.popleft()
            yield source, image.result()
            pending.extend((source, pool.submit(prepare, source)) for source in islice(remaining, 1))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
