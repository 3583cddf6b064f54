"""PyTorch's side of benchmarks/peers_input.py, in an environment of its own (benchmarks/requirements-peers.txt).

    python benchmarks/peers_input_torch.py <folder of JPEGs> <kind> <px> <seconds> <processes>

prints the images/s of a DataLoader that decodes each image with Pillow, makes two views of it and stacks them to
batches of 16. Kinds: `crops`, Random Resized Crops and flips, as uint8; `full`, with BYOL's augmentation by the Pillow
calls that torchvision makes for a Pillow image, the blur as MoCo v2 and SimSiam do it, as normalised float32.
"""

import math
import random
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

MEAN, STD = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def crop(image: Image.Image, size: int) -> Image.Image:
    """A Random Resized Crop, flipped at times."""
    while True:
        area = random.uniform(0.08, 1) * image.width * image.height
        aspect = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if w <= image.width and h <= image.height:
            break
    x, y = random.randint(0, image.width - w), random.randint(0, image.height - h)
    view = image.crop((x, y, x + w, y + h)).resize((size, size), Image.Resampling.BILINEAR)
    return view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else view


def hue(image: Image.Image, turn: float) -> Image.Image:
    h, s, v = image.convert("HSV").split()
    turned = Image.fromarray(np.asarray(h) + np.uint8(int(turn * 255) % 256))
    return Image.merge("HSV", (turned, s, v)).convert("RGB")


def photometric(image: Image.Image, blur: float, solarize: float) -> Image.Image:
    """BYOL's strengths; blur and solarisation with these probabilities."""
    if random.random() < 0.8:
        steps = [
            lambda x: ImageEnhance.Brightness(x).enhance(random.uniform(0.6, 1.4)),
            lambda x: ImageEnhance.Contrast(x).enhance(random.uniform(0.6, 1.4)),
            lambda x: ImageEnhance.Color(x).enhance(random.uniform(0.8, 1.2)),
            lambda x: hue(x, random.uniform(-0.1, 0.1)),
        ]
        for step in random.sample(steps, 4):
            image = step(image)
    if random.random() < 0.2:
        image = ImageOps.grayscale(image).convert("RGB")
    if random.random() < blur:
        image = image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))
    return ImageOps.solarize(image, 128) if random.random() < solarize else image


class Pairs(torch.utils.data.Dataset):
    """Two views of each image, for ever."""

    def __init__(self, folder: str, kind: str, size: int):
        self.paths = sorted(map(str, Path(folder).glob("*.jpg")))
        self.full, self.size = kind == "full", size

    def __len__(self) -> int:
        return 10**7

    def __getitem__(self, i: int) -> list[torch.Tensor]:
        image = Image.open(self.paths[i % len(self.paths)]).convert("RGB")
        views = []
        for blur, solarize in ((1.0, 0.0), (0.1, 0.2)):
            view = crop(image, self.size)
            view = photometric(view, blur, solarize) if self.full else view
            pixels = torch.from_numpy(np.array(view)).permute(2, 0, 1).contiguous()
            views.append((pixels.float() / 255 - MEAN) / STD if self.full else pixels)
        return views


def main() -> None:
    folder, kind, size, seconds, processes = sys.argv[1:]
    torch.set_num_threads(1)
    batches = iter(torch.utils.data.DataLoader(Pairs(folder, kind, int(size)), 16, num_workers=int(processes)))
    for _ in range(4 * int(processes)):  # those that were begun while the processes started
        next(batches)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < float(seconds):
        count += len(next(batches)[0])
    print(count / (time.perf_counter() - began))


if __name__ == "__main__":
    main()
