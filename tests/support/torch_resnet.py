"""torchvision's ResNet (v1.5) in PyTorch, for comparison: same module names, same order, same mathematics."""

import torch
from torch import nn


def conv(inputs: int, outputs: int, size: int, stride: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False, groups=groups)


class Block(nn.Module):
    def __init__(self, inputs: int, channels: int, stride: int, bottleneck: bool, groups: int, per_group: int):
        super().__init__()
        outputs = channels * 4 if bottleneck else channels
        if bottleneck:
            inner = channels * per_group // 64 * groups
            layers = [(inputs, inner, 1, 1), (inner, inner, 3, stride, groups), (inner, outputs, 1, 1)]
        else:
            layers = [(inputs, channels, 3, stride), (channels, channels, 3, 1)]
        self.count = len(layers)
        for i, layer in enumerate(layers, 1):
            setattr(self, f'conv{i}', conv(*layer))
            setattr(self, f'bn{i}', nn.BatchNorm2d(layer[1]))
        self.downsample = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x
        for i in range(1, self.count + 1):
            h = getattr(self, f'bn{i}')(getattr(self, f'conv{i}')(h))
            if i < self.count:
                h = h.relu()
        return (h + (x if self.downsample is None else self.downsample(x))).relu()


class ResNet(nn.Module):
    """ResNet-18, -34, -50 or -101 (or a wide one, or a ResNeXt) with the ImageNet stem."""

    def __init__(self, depth: int, width: int = 64, classes: int = 1000, groups: int = 1, per_group: int = 64):
        super().__init__()
        sizes = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}[depth]
        bottleneck = depth >= 50
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = width
        for stage, blocks in enumerate(sizes):
            channels, layers = width * 2**stage, []
            for block in range(blocks):
                layers.append(Block(inputs, channels, 2 if stage and not block else 1, bottleneck, groups, per_group))
                inputs = channels * 4 if bottleneck else channels
            setattr(self, f'layer{stage + 1}', nn.Sequential(*layers))
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.bn1(self.conv1(x)).relu())
        for stage in range(1, 5):
            x = getattr(self, f'layer{stage}')(x)
        return self.fc(x.mean((2, 3)))


def randomised(depth: int, width: int, classes: int, seed: int = 0, **grouped: int) -> ResNet:
    """In evaluation mode, with random statistics and affine parameters in every BatchNorm."""
    torch.manual_seed(seed)
    network = ResNet(depth, width, classes, **grouped).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network
