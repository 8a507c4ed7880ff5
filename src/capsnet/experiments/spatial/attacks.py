"""Adversarial digits, made with full knowledge of the model, and how many a reconstruction gives away."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from capsnet.data import to_float
from capsnet.data.mnist import load_mnist
from capsnet.models import CapsNet, SmallCNN

Classifier = CapsNet | SmallCNN
Images = Float[Tensor, "batch channels height width"]
FALSE_ALARMS = 0.05
COUNT = 500
BATCH = 250
REACHES = (0.1, 0.2, 0.3)
"""By how much a pixel, from 0 to 1, may be changed."""
STEPS = 20
"""Of projected gradient descent, each an eighth of the reach long, from a random start."""


class Attack(NamedTuple):
    name: str
    steps: int
    hidden: bool
    """Whether it knows about the reconstruction, too."""


ATTACKS = (Attack("FGSM", 1, False), Attack("PGD", STEPS, False), Attack("PGD that hides", STEPS, True))


def measure_attacks(model: Classifier, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Error in percent on the first test digits, plain and attacked, and the share of successes that is caught.

    An image is told to be adversarial if it is further from its reconstruction than 95 % of the plain test digits. The
    attacks push the score of the best wrong class above that of the right one: unlike the margin loss, whose gradient
    is zero where capsules are long or short enough, that never stops; no model is safe because its loss is flat. FGSM:
    Goodfellow et al. 2015. PGD: Madry et al. 2018. "PGD that hides" knows about the reconstruction as well.
    """
    model.to(device).eval()
    digits = load_mnist("test").first(COUNT)
    images, labels = to_float(digits.images.to(device)), digits.labels.to(device)
    decodes = isinstance(model, CapsNet) and model.decoder is not None
    limit = float(_distances(model, images).quantile(1 - FALSE_ALARMS)) if decodes else None
    found: dict[str, Any] = {"error": _error(model, images, labels), "limit": limit, "attacks": {}}
    for attack in ATTACKS:
        if attack.hidden and not decodes:
            continue
        for reach in REACHES:
            generator = torch.Generator().manual_seed(0)
            changed = torch.cat(
                [
                    perturbed(model, *part, reach, attack, generator)
                    for part in zip(images.split(BATCH), labels.split(BATCH), strict=True)
                ]
            )
            outcome: dict[str, float] = {"error": _error(model, changed, labels)}
            wrong = _wrong(model, changed, labels).cpu()
            if limit is not None and wrong.any():
                caught = _distances(model, changed)[wrong] > limit
                outcome["caught"] = round(100 * float(caught.float().mean()), 4)
                outcome["undetected"] = round(100 * float((~caught).sum()) / len(labels), 4)
            found["attacks"][f"{attack.name} {reach}"] = outcome
    return found


def perturbed(
    model: Classifier,
    images: Images,
    labels: Int[Tensor, " batch"],
    reach: float,
    attack: Attack,
    generator: torch.Generator,
) -> Images:
    """Images within `reach` of the given ones in every pixel, changed such that the model errs.

    An attack that hides brings an image closer to its reconstruction whenever the model errs already, and ends with
    the closest of the images for which it did (after Qin et al. 2020).
    """
    step = reach if attack.steps == 1 else reach / 8
    noise = 2 * torch.rand(images.shape, generator=generator) - 1
    changed = images if attack.steps == 1 else (images + reach * noise.to(images.device)).clamp(0, 1)
    closest, least = changed, torch.full((len(images),), torch.inf, device=images.device)
    for _ in range(attack.steps):
        changed = changed.detach().requires_grad_()
        gain = lead = _lead(model, changed, labels)
        if attack.hidden:
            distance = _distance(model, changed)
            found = (lead > 0) & (distance < least)
            least = torch.where(found, distance, least).detach()
            closest = torch.where(found[:, None, None, None], changed, closest).detach()
            gain = torch.where(lead > 0, -distance, lead)
        (gradient,) = torch.autograd.grad(gain.sum(), changed)
        moved = changed.detach() + step * gradient.sign()
        changed = torch.minimum(torch.maximum(moved, images - reach), images + reach).clamp(0, 1)
    return torch.where(least.isfinite()[:, None, None, None], closest, changed)


def _lead(model: Classifier, images: Images, labels: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """By how much the best wrong class leads the right one, in lengths or logits."""
    answers = model(images)
    scores = answers.lengths if isinstance(model, CapsNet) else answers
    right = scores.gather(1, labels[:, None])[:, 0]
    return scores.scatter(1, labels[:, None], -torch.inf).amax(1) - right


def _distance(model: Classifier, images: Images) -> Float[Tensor, " batch"]:
    """Squared pixel differences between each image and what the winning capsule draws of it, summed."""
    assert isinstance(model, CapsNet)
    return (model.reconstruct(model(images).capsules) - images).square().flatten(1).sum(1)


@torch.inference_mode()
def _wrong(model: Classifier, images: Images, labels: Int[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
    parts = zip(images.split(BATCH), labels.split(BATCH), strict=True)
    return torch.cat([model.probabilities(part).argmax(1) != those for part, those in parts])


def _error(model: Classifier, images: Images, labels: Int[Tensor, " batch"]) -> float:
    return round(100 * float(_wrong(model, images, labels).float().mean()), 4)


@torch.inference_mode()
def _distances(model: Classifier, images: Images) -> Float[Tensor, " batch"]:
    return torch.cat([_distance(model, part).cpu() for part in images.split(BATCH)])
