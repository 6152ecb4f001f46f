"""Small networks that the recipes name, layer for layer as their authors published them.

All take square images of their data set's size (28 for MNIST, 32 for CIFAR), since a flattened map
feeds the head. Parameter counts are for the default arguments.
"""

import torch
from torch import Tensor, nn


class ConvNet(nn.Module):
    """A stack of convolutions and a head on the flattened map.

    Args:
        features: [B, in_channels, H, W] -> [B, channels, h, w].
        classifier: [B, channels * h * w] -> [B, C].
    """

    def __init__(self, features: nn.Sequential, classifier: nn.Sequential) -> None:
        super().__init__()
        self.features = features
        self.classifier = classifier

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits, [B, C]."""
        logits: Tensor = self.classifier(torch.flatten(self.features(pixels), 1))
        return logits


def mnist_cnn(num_classes: int = 10, in_channels: int = 1) -> nn.Module:
    """Teacher for 28 x 28 digits: about 99 % in a few epochs, 421,642 parameters."""
    features = [*_conv(in_channels, 32), _pool(), *_conv(32, 64), _pool()]
    return ConvNet(nn.Sequential(*features), _head(64 * 7 * 7, 128, num_classes, dropout=0.25))


def mnist_mlp(num_classes: int = 10, in_channels: int = 1, hidden: int = 512) -> nn.Module:
    """One hidden layer of `hidden` units on 28 x 28 pixels, 407,050 parameters."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(in_channels * 28 * 28, hidden),
        nn.ReLU(),
        nn.Linear(hidden, num_classes),
    )


def cifar10_deepnn(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """Teacher of PyTorch's distillation tutorial, 1,186,986 parameters."""
    first = [*_conv(in_channels, 128), *_conv(128, 64), _pool()]
    second = [*_conv(64, 64), *_conv(64, 32), _pool()]
    return ConvNet(nn.Sequential(*first, *second), _head(32 * 8 * 8, 512, num_classes, dropout=0.1))


def cifar10_lightnn(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """Student of PyTorch's distillation tutorial, 267,738 parameters."""
    features = [*_conv(in_channels, 16), _pool(), *_conv(16, 16), _pool()]
    return ConvNet(nn.Sequential(*features), _head(16 * 8 * 8, 256, num_classes, dropout=0.1))


def features_light_cnn(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """Three-convolution student of the feature-matching recipe, 2,193,226 parameters."""
    features = [*_conv(in_channels, 32), *_conv(32, 64), _pool(), *_conv(64, 128), _pool()]
    head = nn.Sequential(nn.Linear(128 * 8 * 8, 256), nn.ReLU(), nn.Linear(256, num_classes))
    return ConvNet(nn.Sequential(*features), head)


def keras_teacher(
    num_classes: int = 10, in_channels: int = 3, dropout_scale: float = 1.0
) -> nn.Module:
    """Six-convolution CNN with Keras' defaults, 2,199,114 trainable parameters.

    `dropout_scale` multiplies the published dropout rates 0.2, 0.3, 0.4 and 0.5.
    """
    blocks: list[nn.Module] = []
    channels = in_channels
    for width, dropout in ((64, 0.2), (128, 0.3), (256, 0.4)):
        blocks += [*_conv_norm(channels, width), *_conv_norm(width, width), _pool()]
        blocks.append(nn.Dropout(dropout_scale * dropout))
        channels = width
    head = [
        nn.Linear(256 * 4 * 4, 256),
        nn.ReLU(),
        nn.BatchNorm1d(256, _KERAS_EPS, _KERAS_MOMENTUM),
    ]
    head += [nn.Dropout(dropout_scale * 0.5), nn.Linear(256, num_classes)]
    return _keras_initialised(ConvNet(nn.Sequential(*blocks), nn.Sequential(*head)))


def keras_student(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """Four-convolution CNN with Keras' defaults, 328,938 trainable parameters."""
    first = [*_conv_norm(in_channels, 32), *_conv_norm(32, 32), _pool()]
    second = [*_conv_norm(32, 64), *_conv_norm(64, 64), _pool()]
    head = [nn.Linear(64 * 8 * 8, 64), nn.ReLU(), nn.BatchNorm1d(64, _KERAS_EPS, _KERAS_MOMENTUM)]
    head.append(nn.Linear(64, num_classes))
    return _keras_initialised(ConvNet(nn.Sequential(*first, *second), nn.Sequential(*head)))


_KERAS_EPS = 1e-3
_KERAS_MOMENTUM = 0.01  # of the new value; Keras states that of the old one, .99


def _conv(channels: int, width: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, width, kernel_size=3, padding=1), nn.ReLU()]


def _conv_norm(channels: int, width: int) -> list[nn.Module]:
    return [*_conv(channels, width), nn.BatchNorm2d(width, _KERAS_EPS, _KERAS_MOMENTUM)]


def _pool() -> nn.Module:
    return nn.MaxPool2d(kernel_size=2, stride=2)


def _head(flat: int, hidden: int, num_classes: int, *, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(flat, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, num_classes)
    )


def _keras_initialised(model: nn.Module) -> nn.Module:
    """Draw the weights as Keras does by default: Glorot uniform, biases zero."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    return model
