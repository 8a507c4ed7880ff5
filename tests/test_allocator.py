"""Large buffers are kept after `tune_allocator`, in a process of its own, and only then."""

import sys

import pytest
import torch
from process import run_python

from capsnet.allocator import large_empty


def test_shapes_and_alignment():
    for shape in [(3,), (2, 5), (1024, 1024, 3)]:
        x = large_empty(*shape)
        assert x.shape == shape
        assert x.dtype == torch.float32
        assert x.data_ptr() % 64 == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_large_ones_come_again_when_nobody_uses_them():
    program = """
        import torch
        from capsnet.allocator import large_empty, tune_allocator

        size = 4 * 2**20
        before = large_empty(size)
        assert tune_allocator()
        first = large_empty(size)
        at = first.data_ptr()
        assert at % 64 == 0 and at != before.data_ptr()
        view = first.view(2, -1)[1:].detach()
        del first
        other = large_empty(size)
        assert other.data_ptr() != at, "a view still uses it"
        del view
        assert large_empty(4, size // 4).data_ptr() == at
        assert large_empty(2 * size).data_ptr() != at, "another size"
        assert other.fill_(1).sum() == size
        assert tune_allocator()
        print("ok")
    """
    assert run_python(program).strip() == "ok"


def test_gradients_do_not_outlive_a_step():
    from capsnet.optimizer import AdamW

    weight = torch.nn.Parameter(torch.ones(2, 3).T)
    optimizer = AdamW([weight])
    weight.grad = torch.ones(3, 2)
    optimizer.step()
    assert all(view.grad is None for group in optimizer.param_groups for view in group["params"])
