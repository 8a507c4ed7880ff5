"""The optimizer against PyTorch's own."""

import copy

import torch

from capsnet.convolution import Conv2d
from capsnet.optimizer import AdamW


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 9, 2))


def train(module, optimizer, steps=4, first=0):
    for step in range(first, first + steps):
        images = torch.randn(5, 3, 5, 5, generator=torch.Generator().manual_seed(step))

        def closure(images=images):
            optimizer.zero_grad()
            loss = module(images).square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)


def groups(module):
    weights, biases = ([p for p in module.parameters() if (p.dim() > 1) == large] for large in (True, False))
    return [{"params": weights, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0}]


def assert_same(a, b):
    for x, y in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-7)


def test_steps_are_those_of_adamw():
    ours, theirs = model(), model()
    train(ours, AdamW(groups(ours), lr=0.01))
    train(theirs, torch.optim.AdamW(groups(theirs), lr=0.01))
    assert_same(ours, theirs)
    plain, reference = model(), model()
    train(plain, AdamW(plain.parameters(), weight_decay=0))
    train(reference, torch.optim.Adam(reference.parameters()))
    assert_same(plain, reference)


def test_goes_on_from_its_state_and_after_weights_were_replaced():
    through, resumed = model(), model()
    optimizer = AdamW(through.parameters(), lr=0.01)
    train(through, optimizer, 2)
    resumed.load_state_dict(copy.deepcopy(through.state_dict()))
    second = AdamW(resumed.parameters(), lr=0.01)
    for p in resumed.parameters():
        p.data = p.data.clone()
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(through, optimizer, 2, first=2)
    train(resumed, second, 2, first=2)
    for x, y in zip(through.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(x, y)


def test_weights_without_gradient_stay():
    module = model()
    before = copy.deepcopy(module.state_dict())
    optimizer = AdamW(module.parameters())
    module[2].weight.sum().backward()
    optimizer.step()
    assert torch.equal(module[0].weight, before["0.weight"])
    assert not torch.equal(module[2].weight, before["2.weight"])
