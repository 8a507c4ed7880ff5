from itertools import pairwise

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from capsnet.routing import couplings, route


def draw(batch=2, in_capsules=6, in_dim=3, out_capsules=4, out_dim=5, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(batch, in_capsules, in_dim, generator=generator, dtype=torch.float64)
    weight = torch.randn(out_capsules, in_capsules, in_dim, out_dim, generator=generator, dtype=torch.float64)
    return u.to(dtype), weight.to(dtype)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(1, 6)] * 5),
    iterations=st.integers(1, 5),
    leaky=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_route_is_procedure_1(sizes, iterations, leaky, dtype):
    u, weight = draw(*sizes, dtype=dtype)
    expected, history = reference.routing(u, weight, iterations, leaky)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    np.testing.assert_allclose(route(u, weight, iterations, leaky=leaky), expected, atol=tolerance)
    np.testing.assert_allclose(couplings(u, weight, iterations, leaky=leaky), history, atol=tolerance)


@pytest.mark.parametrize("leaky", [False, True])
@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_gradients_flow_through_every_iteration(iterations, leaky):
    u, weight = (tensor.requires_grad_() for tensor in draw(in_capsules=4, out_capsules=3))
    assert torch.autograd.gradcheck(lambda u, w: route(u, w, iterations, leaky=leaky), (u, weight))


def test_detach_early_changes_gradients_but_not_results():
    u, weight = draw()
    weight.requires_grad_()
    full, short = route(u, weight, 3), route(u, weight, 3, detach_early=True)
    torch.testing.assert_close(full, short)
    (full_gradient,) = torch.autograd.grad(full.sum(), weight)
    (short_gradient,) = torch.autograd.grad(short.sum(), weight)
    assert not torch.allclose(full_gradient, short_gradient)
    # With the couplings as constants, the gradient is that of one weighted sum and squash.
    constant = couplings(u, weight.detach(), 3)[-1]
    votes = torch.einsum("bid,jide->bjie", u, weight)
    from capsnet.functional import squash

    (expected,) = torch.autograd.grad(squash(torch.einsum("bji,bjie->bje", constant, votes)).sum(), weight)
    torch.testing.assert_close(short_gradient, expected)


def test_order_of_input_capsules_does_not_matter():
    u, weight = draw(in_capsules=9)
    order = torch.randperm(9)
    torch.testing.assert_close(route(u[:, order], weight[:, order]), route(u, weight))


def test_coupling_goes_where_votes_agree():
    # Three lower capsules, two higher. For the first, capsules 0 and 1 vote alike and 2 votes the opposite; for the
    # second, votes of the same sizes point three different ways.
    votes = torch.tensor(
        [[[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]], [[0.0, 1.0], [0.7, -0.7], [-0.7, -0.7]]], dtype=torch.float64
    )
    weight = votes.unsqueeze(2)  # (J, I, 1, D): with u = 1, the weights are the votes
    c = couplings(torch.ones(1, 3, 1, dtype=torch.float64), weight, 4)[:, 0]
    assert (c[0] == 0.5).all()
    for earlier, later in pairwise(c):
        assert (later[0, :2] > earlier[0, :2]).all()  # those that agree are drawn in
        assert later[0, 2] < earlier[0, 2]  # the one that does not is sent away
    torch.testing.assert_close(c.sum(dim=1), torch.ones(4, 3, dtype=torch.float64))


def test_leaky_couplings_leave_room_for_none_of_the_above():
    u, weight = draw()
    assert (couplings(u, weight, 3, leaky=True).sum(dim=2) < 1).all()


def test_silent_inputs_give_silent_outputs_and_finite_gradients():
    u, weight = draw()
    u = torch.zeros_like(u).requires_grad_()
    out = route(u, weight.requires_grad_())
    assert (out == 0).all()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(out.sum(), (u, weight)))


def test_less_than_one_iteration_is_refused():
    with pytest.raises(ValueError, match="at least 1 iteration"):
        route(*draw(), iterations=0)
