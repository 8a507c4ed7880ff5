"""Small matrices applied to many numbers at once, from one buffer of a program to another."""

from collections.abc import Sequence

from torch import Tensor

from capsnet.kernels.products import Place, Products, Program, Runs


class Transform:
    """``target[row] = Σ_k matrix[row, k] · source[k]`` at many starts, and its adjoint.

    ``starts`` are lists of (source, target); those of different lists may overlap in the source.
    """

    def __init__(
        self,
        matrix: Tensor,
        sources: Sequence[int],
        targets: Sequence[int],
        starts: list[list[tuple[int, int]]],
        columns: Runs,
    ) -> None:
        self.matrix = matrix.contiguous()
        length = matrix.shape[1]
        source, target = _columns([pair for group in starts for pair in group])
        self.job = Products(([0] * len(source), source, target), (length, targets), (1, sources), columns)
        self.jobs_back = [  # rows of the transposed matrix are columns of the matrix
            Products(([0] * len(source), target, source), (1, sources), (length, targets), columns.swapped())
            for source, target in map(_columns, starts)
        ]

    def forward(self, program: Program, source: Place, target: Place, add: bool = False, large: bool = False) -> None:
        program.add(self.job, self.matrix, source, target, add=add, large=large)

    def adjoint(self, program: Program, target: Place, source: Place, add: bool = False, large: bool = False) -> None:
        for number, job in enumerate(self.jobs_back):
            if number:
                program.wait()
            program.add(job, self.matrix, target, source, add=add, large=large)


def _columns(pairs: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    return [a for a, _ in pairs], [b for _, b in pairs]
