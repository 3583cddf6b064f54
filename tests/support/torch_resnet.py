"""A ResNet as torchvision builds it, in PyTorch; for tests where that is installed."""

import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, inputs: int, channels: int, stride: int, bottleneck: bool):
        super().__init__()
        out = channels * (4 if bottleneck else 1)
        shapes = [(inputs, channels, 3, stride), (channels, out, 3, 1)]
        if bottleneck:
            shapes = [(inputs, channels, 1, 1), (channels, channels, 3, stride), (channels, out, 1, 1)]
        for k, (a, b, kernel, step) in enumerate(shapes, 1):
            setattr(self, f"conv{k}", nn.Conv2d(a, b, kernel, step, kernel // 2, bias=False))
            setattr(self, f"bn{k}", nn.BatchNorm2d(b))
        self.count, self.downsample = len(shapes), None
        if stride > 1 or inputs != out:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x):
        out = x
        for k in range(1, self.count + 1):
            out = getattr(self, f"bn{k}")(getattr(self, f"conv{k}")(out))
            out = torch.relu(out) if k < self.count else out
        return torch.relu(out + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """Images (b, 3, h, w) -> pooled features."""

    def __init__(self, depth: int, width: int = 64):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        inputs, bottleneck = width, depth >= 50
        for stage, blocks in enumerate({18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}[depth]):
            layer = []
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                layer.append(Block(inputs, width * 2**stage, stride, bottleneck))
                inputs = width * 2**stage * (4 if bottleneck else 1)
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layer))

    def forward(self, x):
        x = nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return x.mean((2, 3))
