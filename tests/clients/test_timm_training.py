"""What timm's train.py and validate.py do with a model: optimiser by layers, schedule, average, checkpoints."""

import pytest
import torch
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.loss import LabelSmoothingCrossEntropy
from timm.models import load_checkpoint, resume_checkpoint
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, CheckpointSaver, ModelEmaV3, NativeScaler, accuracy

pytestmark = pytest.mark.slow


def parts(model: torch.nn.Module):
    optimizer = create_optimizer_v2(model, opt="adamw", lr=2e-3, weight_decay=0.05, layer_decay=0.8)
    scheduler, _ = create_scheduler_v2(optimizer, sched="cosine", num_epochs=4, warmup_epochs=1, warmup_lr=1e-5)
    return optimizer, scheduler, ModelEmaV3(model, decay=0.9)


def epoch(model, optimizer, average, batches) -> float:
    meter, scaler, loss_fn = AverageMeter(), NativeScaler(device="cpu"), LabelSmoothingCrossEntropy(0.1)
    for x, target in batches:
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_fn(model(x), target)
        optimizer.zero_grad()
        scaler(loss, optimizer, clip_grad=1.0, parameters=model.parameters())
        average.update(model)
        meter.update(loss.item(), len(x))
    return meter.avg


def test_training_resumes_as_timm_s_script_does(small, tmp_path):
    colours = torch.eye(3)[:, :, None, None].expand(3, 3, 64, 64)
    target = torch.arange(12) % 3
    batches = [(colours[target] + 0.1 * torch.randn(12, 3, 64, 64), target) for _ in range(3)]
    model = small(num_classes=3, drop_path_rate=0.1).train()
    model.set_grad_checkpointing()
    optimizer, scheduler, average = parts(model)
    saver = CheckpointSaver(
        model, optimizer, model_ema=average, checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path), max_history=2
    )
    losses = []
    for i in range(3):
        losses.append(epoch(model, optimizer, average, batches))
        scheduler.step(i + 1)
        saver.save_checkpoint(i, metric=-losses[-1])
    assert losses[-1] < losses[0]

    again = small(num_classes=3, drop_path_rate=0.1)
    optimizer2, _, average2 = parts(again)
    assert resume_checkpoint(again, str(tmp_path / "last.pth.tar"), optimizer2, log_info=False) == 3
    load_checkpoint(average2.module, str(tmp_path / "last.pth.tar"), use_ema=True)
    x = batches[0][0]
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(x), model.eval()(x))
        torch.testing.assert_close(average2.module.eval()(x), average.module.eval()(x))
    assert optimizer2.state_dict()["state"].keys() == optimizer.state_dict()["state"].keys()


def test_validation_as_timm_s_script_does(small, photos):
    (photos / "val" / "cat" / "broken.jpg").unlink(missing_ok=True)
    model = small(num_classes=3).eval()
    config = resolve_data_config({"input_size": (3, 64, 64)}, model=model)
    dataset = create_dataset("", root=str(photos), split="val")
    loader = create_loader(dataset, batch_size=4, use_prefetcher=False, num_workers=0, device="cpu", **{
        key: config[key] for key in ("input_size", "interpolation", "mean", "std", "crop_pct")
    })  # fmt: skip
    top1, seen = AverageMeter(), 0
    with torch.inference_mode():
        for x, target in loader:
            top1.update(accuracy(model(x), target, topk=(1,))[0].item(), len(x))
            seen += len(x)
    assert seen == 9
    assert 0 <= top1.avg <= 100
