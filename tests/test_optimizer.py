"""The optimizer against PyTorch's own."""

import copy
import pickle

import pytest
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


@pytest.mark.parametrize(
    "replace",
    [
        lambda module: module.to(memory_format=torch.channels_last),
        lambda module: setattr(module[0].weight, "data", module[0].weight.data.contiguous()),
    ],
)
def test_goes_on_when_weights_lie_in_another_order(replace):
    ours, theirs = model(), model()
    optimizers = AdamW(ours.parameters(), lr=0.01), torch.optim.AdamW(theirs.parameters(), lr=0.01)
    for step in range(6):
        for module, optimizer in zip((ours, theirs), optimizers, strict=True):
            train(module, optimizer, 1, first=step)
            if step == 2:
                strides = module[0].weight.stride()
                replace(module)
                assert module[0].weight.stride() != strides
    assert_same(ours, theirs)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_with_its_model_goes_on_alike(copied):
    whole = model()
    optimizer = AdamW(groups(whole), lr=0.01)
    train(whole, optimizer, 2)
    other, second = copied((whole, optimizer))
    train(whole, optimizer, 2, first=2)
    train(other, second, 2, first=2)
    assert_same(whole, other)


def test_weights_may_be_added_later():
    ours, theirs = model(), model()
    optimizers = []
    for module, kind in ((ours, AdamW), (theirs, torch.optim.AdamW)):
        optimizer = kind(module[2].parameters(), lr=0.01)
        train(module, optimizer, 2)
        optimizer.add_param_group({"params": module[0].weight, "weight_decay": 0.1})
        train(module, optimizer, 2, first=2)
        optimizers.append(optimizer)
    assert_same(ours, theirs)
    assert [len(group["params"]) for group in optimizers[0].param_groups] == [2, 1]


def test_a_step_is_seen_as_a_change():
    module = model()
    module[0].weight.sum().backward()
    before = [p._version for p in module.parameters()]
    AdamW(module.parameters()).step()
    assert module[0].weight._version > before[0]
    assert [p._version for p in module.parameters()][1:] == before[1:]


def test_averages_of_weights_without_gradients_vanish_and_the_steps_stay_those_of_adamw():
    ours, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 100)) for _ in range(2))
    optimizer, reference = AdamW([ours], weight_decay=0.1), torch.optim.AdamW([theirs], weight_decay=0.1)
    learning = torch.arange(100) < 50  # the others stop after the first step
    for step in range(1500):
        for parameter in (ours, theirs):
            gradient = torch.sin(torch.arange(100.0) + step)
            parameter.grad = gradient.where(learning | torch.tensor(step == 0), 0)
        optimizer.step()
        reference.step()
    (state,), (denormal,) = optimizer.state.values(), reference.state.values()
    assert 0 < denormal["exp_avg"][~learning].abs().max() < 1e-38
    assert (state["exp_avg"][~learning] == 0).all()
    assert (state["exp_avg_sq"] > 0).all()  # still large enough to count
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


def test_a_weight_without_a_gradient_keeps_no_state():
    used, unused = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = AdamW([used, unused])
    used.grad = torch.ones(2)
    optimizer.step()
    assert list(optimizer.state_dict()["state"]) == [0]
