"""What the zoo's models learn from, by architecture: text, labelled scenes, noisy scenes, scenes with captions."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from dataset.families import write_text
from dataset.tasks import FACTORS, TASKS, draw, render
from dataset.zoo_models import IMAGE, TEXT, VOCABULARY

LENGTH = 32  # characters of a window
DOMAINS = ("prose", "chat", "code", "python", "instruct")
IMAGE_TASKS = tuple(TASKS)
KINDS_OF_SCENES = ("any", "hue=1", "tone=0", "shape=2", "texture=2", "scale=3", "orientation=1", "frequency=3")
# Each names a colour or a tone, which are learned within the length of a root's training.
CAPTIONS = ("hue+tone", "hue+shape", "tone+texture", "hue+location", "tone+scale", "hue+frequency")


def tasks_of(architecture: str) -> tuple[str, ...]:
    """What models of an architecture can be trained on."""
    if architecture in TEXT:
        return DOMAINS
    if architecture in IMAGE:
        return tuple(task for task in IMAGE_TASKS if task != "count")
    return KINDS_OF_SCENES if architecture == "unet" else CAPTIONS


def has_vocabulary(architecture: str) -> bool:
    """Whether a model of the architecture learns characters, so that its vocabulary can be made longer."""
    return architecture in TEXT


Batch = tuple[torch.Tensor, ...]


def _windows(domain: str, count: int, rng: np.random.Generator) -> torch.Tensor:
    text = torch.tensor(list(write_text(domain, 8000, rng).encode()))
    starts = torch.from_numpy(rng.integers(0, len(text) - LENGTH, count))
    return text[starts[:, None] + torch.arange(LENGTH)]


def _scenes(count: int, rng: np.random.Generator, fixed: dict[str, int]) -> tuple[torch.Tensor, dict[str, np.ndarray]]:
    factors = {name: rng.integers(0, classes, count) for name, classes in FACTORS.items()}
    factors |= {name: np.full(count, value) for name, value in (fixed | {"count": 0}).items()}
    return torch.from_numpy(render(factors, rng)), factors


def draw_data(architecture: str, task: str, count: int, rng: np.random.Generator) -> Batch:
    """`count` examples of a task, as tensors with one row for each."""
    if architecture == "bert":
        windows = _windows(task, count, rng)
        hidden = torch.from_numpy(rng.random(windows.shape) < 0.2)
        return windows.masked_fill(hidden, 0), windows.masked_fill(~hidden, -100)
    if architecture in TEXT:
        return (_windows(task, count, rng),)
    if architecture in IMAGE:
        images, labels = draw(task, count, rng)
        return torch.from_numpy(images), torch.from_numpy(labels)
    if architecture == "unet":
        name, _, value = task.partition("=")
        images = _scenes(count, rng, {name: int(value)} if value else {})[0][:, :, ::2, ::2]
        time = torch.from_numpy(rng.uniform(0.05, 1.5, count)).float()
        noise = torch.from_numpy(rng.standard_normal(images.shape, dtype=np.float32))
        angle = time[:, None, None, None]
        return images * angle.cos() + noise * angle.sin(), time, noise
    images, factors = _scenes(count, rng, {})
    factors["location"] = 3 * factors["row"] + factors["column"]
    # A word is a token for the factor's name and one for its value; token 1 ends a caption.
    words = [np.full(count, 0)]
    for name in task.split("+"):
        place = [*FACTORS, "location"].index(name)
        words += [np.full(count, 2 + place), 20 + 9 * place + factors[name]]
    return images, torch.from_numpy(np.stack([*words, np.full(count, 1)], axis=1)).clamp(max=VOCABULARY - 1)


def _next_token(model: nn.Module, windows: torch.Tensor) -> torch.Tensor:
    found: Any = model(input_ids=windows[:, :-1])
    logits = found if isinstance(found, torch.Tensor) else found.logits
    return cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def _classification(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    found: Any = model(images)
    return cross_entropy(found if isinstance(found, torch.Tensor) else found.logits, labels)


_LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    "bert": lambda model, seen, wanted: model(input_ids=seen, labels=wanted).loss,
    "t5": lambda model, text: model(input_ids=text[:, :20], labels=text[:, 20:].contiguous()).loss,
    "unet": lambda model, noisy, time, noise: mse_loss(model(noisy, time), noise),
    "clip": lambda model, images, words: model(input_ids=words, pixel_values=images, return_loss=True).loss,
}


def loss_of(architecture: str, model: nn.Module, batch: Batch) -> torch.Tensor:
    """The mean loss of a batch of `draw_data`."""
    kind = _classification if architecture in IMAGE else _next_token
    return _LOSSES.get(architecture, kind)(model, *batch)
