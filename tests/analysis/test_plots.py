"""The curves of a training run."""

from pathlib import Path

import numpy as np
from PIL import Image

from linvit.analysis import plots


def pixels(path: Path) -> np.ndarray:
    """Read a picture as ``[H, W, 3]``."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def test_curves_show_what_is_there_and_leave_gaps_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(
        "epoch,step,lr,train/loss,val/loss,val/top1\n0,4,1e-3,,,\n0,9,,2.0,1.8,0.25\n1,14,1e-3,,,\n1,19,,1.0,,\n"
    )
    plots.plot_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
    (tmp_path / "none.csv").write_text("epoch,step\n")
    plots.plot_curves(tmp_path / "none.csv", tmp_path / "none.png")
    drawn, empty = pixels(tmp_path / "curves.png"), pixels(tmp_path / "none.png")
    blue = (drawn[..., 2] - drawn[..., 0]) > 100
    assert blue.any()
    assert not ((empty[..., 2] - empty[..., 0]) > 100).any()
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".csv", ".csv", ".png", ".png"]
