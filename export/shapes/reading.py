"""Reading lessons for the text encoders: small heads that must name what each token's object is and where it goes.

Trained by the denoising loss alone, a fresh T5 stays a bag of words for most of a short training. The heads give it a
direct reason to look at neighbouring words; they are thrown away with the training state.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from . import data
from .vocabulary import MAX_TOKENS

_SIDES = (*data.PLACES, *data.RELATIONS)
_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
# Classes of an object's size, colour, shape and side; one more each for "there is no second object".
_FIELDS = (len(data.SIZES) + 1, len(data.COLOURS) + 1, len(data.SHAPES) + 1, len(_SIDES) + 1)
_WHOLE = (*_FIELDS, *_FIELDS, len(data.BACKGROUNDS))
LABELS = len(_WHOLE)


def labels(scene: data.Scene) -> list[int]:
    """The scene as LABELS class numbers: four of the first object, four of the second, the background."""
    numbers: list[int] = []
    for item, side in zip(scene.objects, (scene.where, _OPPOSITE.get(scene.where)), strict=False):
        numbers += [list(data.SIZES).index(item.size), list(data.COLOURS).index(item.colour)]
        numbers += [data.SHAPES.index(item.shape), _SIDES.index(side)]
    if len(scene.objects) == 1:
        numbers += [classes - 1 for classes in _FIELDS]
    return [*numbers, list(data.BACKGROUNDS).index(scene.background)]


def owners(scene: data.Scene, starts: int) -> list[int]:
    """For each of MAX_TOKENS: 0 or 1, the object it speaks of, or 2 for the tail (background, end, padding).

    `starts` is the number of tokens before the first word.
    """
    words = scene.caption.split()
    first = 4 + len(scene.where.split())
    second = len(words) - 2 - first  # without "on <background>"
    owned = [0] * (starts + first) + [1] * second
    return owned + [2] * (MAX_TOKENS - len(owned))


class Reader(nn.Module):
    """Linear heads on token vectors: an object's tokens must know that object, the tail must know everything."""

    def __init__(self, width: int):
        super().__init__()
        self.own = nn.Linear(width, sum(_FIELDS))
        self.whole = nn.Linear(width, sum(_WHOLE))

    def read_whole(self, vectors: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of vectors [N, width] against labels [N, LABELS]."""
        answers = self.whole(vectors.float()).split(_WHOLE, dim=-1)
        return torch.stack([F.cross_entropy(a, truth[:, i]) for i, a in enumerate(answers)]).mean()

    def forward(self, tokens: torch.Tensor, owner: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of tokens [B, L, width] whose owners are [B, L], against labels [B, LABELS]."""
        row, place = (owner < 2).nonzero(as_tuple=True)
        objects = truth[:, :8].view(-1, 2, 4)[row, owner[row, place]]
        answers = self.own(tokens[row, place].float()).split(_FIELDS, dim=-1)
        own = torch.stack([F.cross_entropy(a, objects[:, i]) for i, a in enumerate(answers)]).mean()
        row, place = (owner == 2).nonzero(as_tuple=True)
        return own + self.read_whole(tokens[row, place], truth[row])
