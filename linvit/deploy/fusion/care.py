"""CARE for inference: one linear map wherever the trained model has several in a row."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linvit.attention import CareTokenMixer, DualInteraction
from linvit.deploy.fusion.folding import affine, scale_inputs, scale_outputs
from linvit.deploy.fusion.looks import received
from linvit.deploy.fusion.wrapper import Wrapper
from linvit.models.care import Care, CareBlock, CareHead, CareStage, PatchConv2d
from linvit.ops import attend_columns, elu_plus_one

__all__ = ["FusedCare", "FusedCareStage"]


class FusedCare(Wrapper):
    """CARE with one classifier, the mean of the trained two.

    Both heads normalise the same features: what differs, gain and bias, is linear and goes into one linear layer.

    Args:
        model: A model in evaluation mode, which is taken over and left without its classifiers.
    """

    def __init__(self, model: Care):
        super().__init__(model)
        self.num_classes = model.num_classes
        self.head: nn.Module = nn.Identity()
        if isinstance(model.head, CareHead) and isinstance(model.dist_head, CareHead):
            self.head = _mean_head(model.head, model.dist_head)
            model.reset_classifier(0)

    def get_classifier(self) -> nn.Module:
        """Return the classifier."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Remove the classifier (0 classes); a fused model cannot learn a new one."""
        if num_classes != 0:
            raise ValueError(f"num_classes of a fused model can only be reset to 0, got {num_classes}")
        self.model.reset_classifier(0, global_pool)
        self.num_classes, self.head = 0, nn.Identity()

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify; ``pre_logits`` returns the pooled, activated features."""
        x = self.model.forward_head(x, pre_logits=True)
        if pre_logits or self.num_classes == 0:
            return x
        return self.head(x.permute(0, 2, 3, 1) if self.model.global_pool == "" else x)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[B, C, H, W]`` to logits ``[B, num_classes]``."""
        return self.forward_head(self.model.forward_features(x))


class FusedCareStage(nn.Module):
    """A stage without BatchNorms and layer scales; maps in and out are the trained stage's.

    Attributes:
        attends_in_groups: Whether attention mixes one of several groups, beside a memory.
    """

    def __init__(self, stage: CareStage):
        super().__init__()
        self.downsample: nn.Module = nn.Identity()
        if len(stage.downsample):
            norm, conv = stage.downsample
            assert isinstance(norm, nn.BatchNorm2d)
            assert isinstance(conv, PatchConv2d)
            self.downsample = _NormalisedPatches(norm, conv)
        self.blocks = nn.Sequential(*map(_FusedBlock, stage.blocks))  # type: ignore[arg-type]
        mixer, memory = stage.blocks[0].token_mixer, stage.blocks[0].split[0]  # type: ignore[union-attr, index]
        self.attends_in_groups = isinstance(mixer, CareTokenMixer) and mixer.num_heads > 0 and memory > 0

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, C, H, W]`` to ``[B, C', H', W']``."""
        return self.blocks(self.downsample(x))


class _NormalisedPatches(nn.Module):
    """BatchNorm and a convolution over whole patches as one convolution, exact where the map is padded, too."""

    def __init__(self, norm: nn.BatchNorm2d, conv: PatchConv2d):
        super().__init__()
        scale, shift = affine(norm)
        # The trained model pads after the BatchNorm. There, the shift that is in the bias now must not count.
        shifted = torch.einsum("oikl,i->okl", conv.weight.detach().double(), shift).unsqueeze(1)
        self.register_buffer("shifted", shifted.to(conv.weight.dtype))
        scale_inputs(conv, scale, shift)
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        patch = self.conv.patch_size
        height, width = x.shape[2:]
        y = self.conv(x)
        if height % patch or width % patch:
            outside = F.pad(x.new_zeros(1, 1, height, width), (0, -width % patch, 0, -height % patch), value=1.0)
            y = y - F.conv2d(outside, self.shifted, stride=patch)  # type: ignore[arg-type]
        return y


class _FusedBlock(nn.Module):
    """A block: token mixing, then two expansions, each of which is 1x1, GELU, depthwise 3x3, 1x1."""

    def __init__(self, block: CareBlock):
        super().__init__()
        inter: DualInteraction = block.inter_layer
        self.split = list(block.split)
        mixer = block.token_mixer
        self.mix = _FusedMixer(mixer) if isinstance(mixer, CareTokenMixer) else mixer
        scale_inputs(inter.inter1_fc1, *affine(inter.inter1_norm))
        scale_inputs(inter.inter2_fc1, *affine(inter.inter2_norm))
        self.expand1, self.local1, self.project1 = inter.inter1_fc1, inter.inter1_conv, inter.inter1_fc2
        self.expand2, self.local2, self.project2 = inter.inter2_fc1, inter.inter2_conv, inter.inter2_fc2
        self.gamma = None
        if block.gamma is not None:
            assert self.project2 is not None
            scale_outputs(self.project2, block.gamma.detach().double())
            self.gamma = nn.Parameter(block.gamma.detach().view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        memory, mixed = x.split(self.split, dim=1)
        mixed = self.mix(mixed)
        mixed = self.project1(self.local1(F.gelu(self.expand1(mixed)))) + mixed
        y = torch.cat((memory, mixed), dim=1)
        z = self.local2(F.gelu(self.expand2(y)))
        if self.project2 is None or self.gamma is None:
            return z
        return self.project2(z) + (x + y * self.gamma)


class _FusedMixer(nn.Module):
    """Token mixing on maps: attention takes tokens as columns, which is how maps hold them."""

    def __init__(self, mixer: CareTokenMixer):
        super().__init__()
        self.num_heads = mixer.num_heads
        self.local3, self.local7 = mixer.dwconv1, mixer.dwconv2
        if self.num_heads:
            self.qk = mixer.qk
        else:
            self.column, self.row = mixer.dwconvatt_1, mixer.dwconvatt_2
            with torch.no_grad():  # one bias for the sum of both
                self.row.bias = nn.Parameter(self.row.bias + self.column.bias)  # type: ignore[operator]
            self.column.bias = None

    def forward(self, x: Tensor) -> Tensor:
        x, local3, local7 = x.chunk(3, dim=1)
        x = self._attend(x) if self.num_heads else self.column(x) + self.row(x)
        return torch.cat((x, self.local3(local3), self.local7(local7)), dim=1)

    def received(self, x: Tensor) -> Tensor:
        """Return how much each position is attended to, as :func:`linvit.deploy.fusion.looks.received` does."""
        x = x.chunk(3, dim=1)[0]
        q, k = elu_plus_one(self.qk(x)).chunk(2, dim=1)
        q, k = (t.reshape(x.shape[0], self.num_heads, -1, x.shape[2] * x.shape[3]).transpose(2, 3) for t in (q, k))
        return received(q, k).reshape(x.shape[0], x.shape[2], x.shape[3])

    def _attend(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        q, k = elu_plus_one(self.qk(x)).chunk(2, dim=1)
        q, k, v = (t.reshape(B, self.num_heads, -1, H * W) for t in (q, k, x))
        return attend_columns(q, k, v).reshape(B, C, H, W)


@torch.no_grad()
def _mean_head(head: CareHead, dist_head: CareHead) -> nn.Module:
    """One head for the mean of two."""
    for one in (head, dist_head):
        scale_inputs(one.fc, *affine(one.norm))
    norm = nn.LayerNorm(head.norm.normalized_shape[0], eps=head.norm.eps, elementwise_affine=False)
    head.fc.weight.copy_((head.fc.weight.double() + dist_head.fc.weight.double()) / 2)
    head.fc.bias.copy_((head.fc.bias.double() + dist_head.fc.bias.double()) / 2)
    return nn.Sequential(norm, head.fc)
