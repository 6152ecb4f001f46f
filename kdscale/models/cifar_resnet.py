"""Residual networks for 32 x 32 images, in the shapes that distillation tables compare.

`resnet20`, `resnet56`: He et al. 2016 (arXiv 1512.03385, section 4.2), with a 1x1 convolution
where the shape changes. `resnet8x4`, `resnet32x4`: the same with four times the width after the
stem (Tian et al. 2020, arXiv 1910.10699). `wrn_*`: Zagoruyko and Komodakis 2016 (arXiv 1605.07146).
Parameter counts are for 100 classes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_BASE_WIDTHS = (16, 16, 32, 64)  # stem, then the three stages
_X4_WIDTHS = (32, 64, 128, 256)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; batch-norm after each convolution."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(channels, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv3x3(width, width, 1)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            shortcut = nn.Conv2d(channels, width, kernel_size=1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(width))

    def forward(self, maps: Tensor) -> Tensor:
        """[B, channels, H, W] -> [B, width, H / stride, W / stride]."""
        out = F.relu(self.bn1(self.conv1(maps)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.downsample(maps))


class PreActivationBlock(nn.Module):
    """Batch-norm and ReLU before each 3x3 convolution; a bare 1x1 convolution as the shortcut."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = _conv3x3(channels, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = _conv3x3(width, width, 1)
        self.shortcut: nn.Module | None = None
        if channels != width:
            self.shortcut = nn.Conv2d(channels, width, kernel_size=1, stride=stride, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        """[B, channels, H, W] -> [B, width, H / stride, W / stride]."""
        activated = F.relu(self.bn1(maps))
        out = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        # Where the shape changes, the shortcut too starts from the activated maps.
        residual: Tensor = maps if self.shortcut is None else self.shortcut(activated)
        total: Tensor = out + residual
        return total


class CifarResNet(nn.Module):
    """Stem, three stages `layer1..3` (32, 16, 8 pixels), average pool, `fc`."""

    def __init__(
        self, blocks_per_stage: int, widths: tuple[int, ...], num_classes: int, in_channels: int
    ) -> None:
        super().__init__()
        stem, first, second, third = widths
        self.conv1 = _conv3x3(in_channels, stem, 1)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = _stage(BasicBlock, blocks_per_stage, stem, first, stride=1)
        self.layer2 = _stage(BasicBlock, blocks_per_stage, first, second, stride=2)
        self.layer3 = _stage(BasicBlock, blocks_per_stage, second, third, stride=2)
        self.fc = nn.Linear(third, num_classes)
        _initialise(self)

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> logits [B, C]."""
        maps = F.relu(self.bn1(self.conv1(pixels)))
        maps = self.layer3(self.layer2(self.layer1(maps)))
        logits: Tensor = self.fc(_average(maps))
        return logits


class WideResNet(nn.Module):
    """Stem of 16, three pre-activation stages `layer1..3` of 16, 32, 64 times the width factor."""

    def __init__(
        self, blocks_per_stage: int, width_factor: int, num_classes: int, in_channels: int
    ) -> None:
        super().__init__()
        first, second, third = (width * width_factor for width in (16, 32, 64))
        self.conv1 = _conv3x3(in_channels, 16, 1)
        self.layer1 = _stage(PreActivationBlock, blocks_per_stage, 16, first, stride=1)
        self.layer2 = _stage(PreActivationBlock, blocks_per_stage, first, second, stride=2)
        self.layer3 = _stage(PreActivationBlock, blocks_per_stage, second, third, stride=2)
        self.bn1 = nn.BatchNorm2d(third)
        self.fc = nn.Linear(third, num_classes)
        _initialise(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> logits [B, C]."""
        maps = self.layer3(self.layer2(self.layer1(self.conv1(pixels))))
        logits: Tensor = self.fc(_average(F.relu(self.bn1(maps))))
        return logits


def resnet20(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """Three blocks a stage, 278,324 parameters."""
    return CifarResNet(3, _BASE_WIDTHS, num_classes, in_channels)


def resnet56(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """Nine blocks a stage, 861,620 parameters."""
    return CifarResNet(9, _BASE_WIDTHS, num_classes, in_channels)


def resnet8x4(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """One block a stage, 1,233,540 parameters."""
    return CifarResNet(1, _X4_WIDTHS, num_classes, in_channels)


def resnet32x4(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """Five blocks a stage, 7,433,860 parameters."""
    return CifarResNet(5, _X4_WIDTHS, num_classes, in_channels)


def wrn_16_2(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """Two blocks a stage, twice the width, 703,284 parameters."""
    return WideResNet(2, 2, num_classes, in_channels)


def wrn_40_2(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """Six blocks a stage, twice the width, 2,255,156 parameters."""
    return WideResNet(6, 2, num_classes, in_channels)


def _conv3x3(channels: int, width: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels, width, kernel_size=3, stride=stride, padding=1, bias=False)


def _stage(
    block: type[BasicBlock | PreActivationBlock],
    num_blocks: int,
    channels: int,
    width: int,
    *,
    stride: int,
) -> nn.Sequential:
    rest = [block(width, width, 1) for _ in range(num_blocks - 1)]
    return nn.Sequential(block(channels, width, stride), *rest)


def _average(maps: Tensor) -> Tensor:
    """[B, channels, H, W] -> [B, channels], at any resolution."""
    return torch.flatten(F.adaptive_avg_pool2d(maps, 1), 1)


def _initialise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
