"""PyTorch's and faiss's side of benchmarks/peers.py and convolution.py, in an environment of its own
(benchmarks/requirements-peers.txt).

It reads one task after the other from its standard input, each a line of JSON, does it, and answers with a line of
JSON. So the two sides measure in turn, and neither imports the other's libraries.

The step is BYOL's, or supervised, with the network, heads, losses and batch of ours, written for speed: channels_last
memory, fused optimiser, bfloat16 by autocast on a GPU. There is no photometric augmentation in it; ours has one.
"""

import copy
import json
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

STAGE_SIZES = {8: (1, 1, 1), 18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Block(nn.Module):
    """The 1-3-1 form where `bottleneck`, else the 3-3 form; stride in the first 3x3 convolution."""

    def __init__(self, inside: int, channels: int, stride: int, bottleneck: bool):
        super().__init__()
        if bottleneck:
            plan = [(inside, channels, 1, 1), (channels, channels, 3, stride), (channels, 4 * channels, 1, 1)]
        else:
            plan = [(inside, channels, 3, stride), (channels, channels, 3, 1)]
        layers: list[nn.Module] = []
        for c, o, kernel, step in plan:
            layers += [nn.Conv2d(c, o, kernel, step, kernel // 2, bias=False), nn.BatchNorm2d(o), nn.ReLU(True)]
        self.residual = nn.Sequential(*layers[:-1])
        outside = plan[-1][1]
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inside != outside:
            self.shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.residual(x) + self.shortcut(x), inplace=True)


def backbone(depth: int, width: int, stem: str) -> tuple[nn.Module, int]:
    """The network, (b, 3, s, s) -> (b, c), and c."""
    kernel = 7 if stem == "imagenet" else 3
    layers = [nn.Conv2d(3, width, kernel, 2, kernel // 2, bias=False), nn.BatchNorm2d(width), nn.ReLU(True)]
    if stem == "imagenet":
        layers.append(nn.MaxPool2d(3, 2, 1))
    inside = width
    for stage, blocks in enumerate(STAGE_SIZES[depth]):
        channels = width * 2**stage
        for block in range(blocks):
            layers.append(Block(inside, channels, 2 if stage > 0 and block == 0 else 1, depth >= 50))
            inside = channels * (4 if depth >= 50 else 1)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), inside


def head(inside: int, hidden: int, out: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(inside, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(True), nn.Linear(hidden, out)
    )


class Step:
    """One training step on random views that lie in the device's memory. Task: `kind` byol or supervised, `depth`,
    `width`, `stem`, `size` (px), `batch` (images), `hidden`, `out`, `compile`."""

    def __init__(self, task: dict):
        network, channels = backbone(task["depth"], task["width"], task["stem"])
        self.byol = task["kind"] == "byol"
        if self.byol:
            online = nn.Sequential(network, head(channels, task["hidden"], task["out"]))
            predictor = head(task["out"], task["hidden"], task["out"])
        else:
            online, predictor = nn.Sequential(network, nn.Linear(channels, 1000)), nn.Identity()
        self.online, self.predictor = (m.to(DEVICE, memory_format=torch.channels_last) for m in (online, predictor))
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.parameters = [*self.online.parameters(), *self.predictor.parameters()]
        self.optimizer = torch.optim.SGD(self.parameters, 1e-3, momentum=0.9, weight_decay=1e-6, fused=True)
        views = 2 * task["batch"] if self.byol else task["batch"]
        self.views = torch.randn(views, 3, task["size"], task["size"], device=DEVICE).to(
            memory_format=torch.channels_last
        )
        self.labels = torch.randint(1000, (views,), device=DEVICE)
        self.forward = torch.compile(self._loss, dynamic=False) if task["compile"] else self._loss

    def _loss(self) -> torch.Tensor:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE == "cuda"):
            if not self.byol:
                return F.cross_entropy(self.online(self.views), self.labels)
            with torch.no_grad():
                keys = self.target(self.views)
            query = self.predictor(self.online(self.views))
            return 2 * (2 - 2 * F.cosine_similarity(query.float(), keys.roll(len(keys) // 2, 0).float()).mean())

    def __call__(self) -> None:
        self.forward().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.byol:
            torch._foreach_lerp_(list(self.target.parameters()), list(self.online.parameters()), 0.01)

    def seconds(self, steps: int) -> float:
        """Of `steps` steps."""
        began = time.perf_counter()
        for _ in range(steps):
            self()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began


def knn(task: dict) -> dict[str, float]:
    """Cosine kNN, each neighbour's vote weighing exp(cosine / temperature), of the rows in a file. Task: `knn` (the
    file), `k`, `temperature`."""
    import faiss  # what the other benchmarks do without

    with np.load(task["knn"]) as file:
        train, labels, test, test_labels = (file[name] for name in ("train", "labels", "test", "test_labels"))
    began = time.perf_counter()
    train, test = train.copy(), test.copy()
    faiss.normalize_L2(train)
    faiss.normalize_L2(test)
    index = faiss.IndexFlatIP(train.shape[1])
    index.add(train)
    cosines, neighbours = index.search(test, task["k"])
    votes = np.zeros((len(test), labels.max() + 1))
    np.add.at(votes, (np.arange(len(test))[:, None], labels[neighbours]), np.exp(cosines / task["temperature"]))
    top1 = float((votes.argmax(1) == test_labels).mean())
    return {"seconds": time.perf_counter() - began, "top1": top1}


def layer(task: dict) -> dict[str, float]:
    """A convolution, forward and both gradients. Task: `layer` (kernel, images, side, channels in and out, stride)."""
    kernel, images, side, channels, out, stride = task["layer"]
    x = torch.randn(images, channels, side, side, device=DEVICE).to(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(out, channels, kernel, kernel, device=DEVICE).to(memory_format=torch.channels_last)
    weight.requires_grad_()
    for _ in range(2):  # the first is to warm up
        began = time.perf_counter()
        y = F.conv2d(x, weight, stride=stride, padding=kernel // 2)
        torch.autograd.grad(y, (x, weight), y.detach())
        seconds = time.perf_counter() - began
    return {"seconds": seconds}


def main() -> None:
    torch.backends.cudnn.benchmark = True
    steps: dict[str, Step] = {}
    for line in sys.stdin:
        task = json.loads(line)
        for name, others in (("knn", knn), ("layer", layer)):
            if name in task:
                print(json.dumps(others(task)), flush=True)
        if "step" not in task:
            continue
        key = json.dumps(task["step"])
        if key not in steps:
            steps[key] = Step(task["step"])
            steps[key].seconds(2)
        answer = {"seconds": steps[key].seconds(task["times"]), "torch": torch.__version__}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
