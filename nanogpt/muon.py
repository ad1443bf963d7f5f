"""The optimizer Muon, which orthogonalises the updates of weight matrices.

The method, with Nesterov momentum, is from Jordan et al. 2024
(https://kellerjordan.github.io/posts/muon/). The decoupled weight decay is from Liu et al. 2025
(arXiv:2502.16982). Two options change it: rows of equal size from Li et al. 2025 (NorMuon,
arXiv:2510.05491), and cautious weight decay from Chen et al. 2025 (arXiv:2510.12402).
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn


class Muon:
    """The optimizer Muon, for the weight matrices of a model.

    A few directions usually dominate the gradient of a matrix. Let U Σ Vᵀ be the singular value
    decomposition of the running mean of the gradients. Muon updates the matrix with U Vᵀ instead:
    all singular values of U Vᵀ are 1, so no direction dominates.
    """

    def __init__(
        self,
        named: Mapping[str, nn.Parameter],
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        precision: torch.dtype = torch.bfloat16,
        stacked: Mapping[str, int] | None = None,
        normalise_rows: bool = False,
        cautious_decay: bool = False,
    ) -> None:
        """`stacked` maps the name of a parameter to the number of matrices stacked in its rows.

        For example, the number is 2 for a parameter that consists of the query matrix and the key
        matrix. The default is 1.
        """
        self.parameters: list[Tensor] = [*named.values()]
        self.averages = [torch.zeros_like(p) for p in self.parameters]
        """The running mean of each gradient."""
        self.momentum, self.weight_decay = momentum, weight_decay
        self.cautious_decay = cautious_decay
        # float16 could overflow; bfloat16 is accurate enough (Jordan et al.).
        self.precision = torch.float32 if precision == torch.float32 else torch.bfloat16
        self.orthogonalise: Callable[[Tensor, torch.dtype], Tensor] = orthogonalise
        """Replaced by a function that shares the work, if several processes train the model."""
        self.whole: Callable[[Tensor], Tensor] = lambda matrices: matrices
        """Replaced by a function that returns whole matrices, if each process has some rows."""
        self._names = list(named)
        self.stacks: dict[tuple[int, int], dict[int, int]] = defaultdict(dict)
        """Maps each matrix shape (rows, columns) to {parameter index: its number of matrices}.

        Matrices of one shape are orthogonalised together, as one batch.
        """
        for i, (name, p) in enumerate(named.items()):
            count = (stacked or {}).get(name, 1)
            self.stacks[p.shape[0] // count, p.shape[1]][i] = count
        self.squares: dict[tuple[int, int], Tensor] = {}
        """For each shape, a running mean of the mean square of each row: (matrices, rows, 1)."""
        if normalise_rows:
            for (rows, columns), counts in self.stacks.items():
                first, count = self.parameters[0], sum(counts.values())
                zeros = torch.zeros(count, rows, 1, dtype=first.dtype, device=first.device)
                self.squares[rows, columns] = zeros

    @torch.no_grad()
    def step(self, rate: Tensor) -> None:
        """Update every matrix with the learning rate `rate`, a scalar tensor."""
        gradients = collect_gradients(self._names, self.parameters)
        torch._foreach_lerp_(self.averages, gradients, 1 - self.momentum)
        if not self.cautious_decay:
            torch._foreach_mul_(self.parameters, 1 - rate * self.weight_decay)
        for (rows, columns), counts in self.stacks.items():
            self._update_stack(rows, columns, counts, gradients, rate)

    def _update_stack(
        self,
        rows: int,
        columns: int,
        counts: dict[int, int],
        gradients: list[Tensor],
        rate: Tensor,
    ) -> None:
        """Update the matrices of one shape; `counts` is their entry in `stacks`.

        The temporary tensors of one shape are freed before those of the next one are allocated.
        """
        nesterov = [gradients[i].clone() for i in counts]
        torch._foreach_lerp_(nesterov, [self.averages[i] for i in counts], self.momentum)
        stack = torch.cat([self.whole(each).view(-1, rows, columns) for each in nesterov])
        directions = self.orthogonalise(stack, self.precision)
        if self.squares:
            directions = normalise_rows(directions.float(), self.squares[rows, columns])
        # The factor √(rows / columns) lets each output of a tall matrix change as much as each
        # output of a square matrix.
        distance = rate * math.sqrt(max(1, rows / columns))
        updates = torch.mul(directions, distance, out=stack)
        if self.cautious_decay:  # only weights that the update moves towards 0 decay
            whole = [self.whole(self.parameters[i]) for i in counts]
            weights = torch.cat([matrices.view(-1, rows, columns) for matrices in whole])
            updates += rate * self.weight_decay * weights * (updates * weights > 0)
        torch._foreach_sub_(
            [self.parameters[i] for i in counts],
            [u.reshape(-1, columns) for u in updates.split(list(counts.values()))],
        )

    def state(self) -> dict[str, Tensor]:
        """Return the tensors to save in a checkpoint, by name."""
        pairs = zip(self._names, self.averages, strict=True)
        squares = {f"rows of {r} x {c}": mean for (r, c), mean in self.squares.items()}
        return {**{f"{name}.momentum": average for name, average in pairs}, **squares}


def collect_gradients(names: Sequence[str], parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradient of each parameter. Raises ValueError if a gradient is missing."""
    gradients = []
    for name, p in zip(names, parameters, strict=True):
        if p.grad is None:
            raise ValueError(
                f"{name} has no gradient: use it in the loss, or set its requires_grad to False "
                f"before the optimizers are built"
            )
        gradients.append(p.grad)
    return gradients


def normalise_rows(matrices: Tensor, squares: Tensor) -> Tensor:
    """Divide each row of `matrices` (N, rows, columns) by the root of its running mean square.

    Then scale each matrix so that it has the same norm as before. `squares` (N, rows, 1) holds the
    running means, which this function updates.
    """
    squares.lerp_(matrices.square().mean(dim=-1, keepdim=True), 0.05)
    scaled = matrices / (squares.sqrt() + 1e-8)
    before, after = (X.norm(dim=(-2, -1), keepdim=True) for X in (matrices, scaled))
    result: Tensor = scaled * (before / after.clamp(min=1e-8))
    return result


def orthogonalise(matrices: Tensor, precision: torch.dtype = torch.float32) -> Tensor:
    """Return approximately U Vᵀ for each matrix U Σ Vᵀ of `matrices` (N, rows, columns).

    The method is five steps of a Newton-Schulz iteration with a quintic polynomial. The
    coefficients of the polynomial let small singular values grow fast (Jordan et al. 2024). The
    singular values do not converge to 1: a singular value above 0.002 times the norm of the matrix
    becomes a number between 0.68 and 1.21.
    """
    X = matrices.to(precision)
    X = X / X.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)  # no singular value is above 1
    is_tall = X.shape[-2] > X.shape[-1]
    if is_tall:
        X = X.mT  # now X Xᵀ is smaller than Xᵀ X
    a, b, c = 3.4445, -4.7750, 2.0315
    for _ in range(5):
        A = X @ X.mT
        B = torch.baddbmm(A, A, A, beta=b, alpha=c)  # bA + cA²
        X = torch.baddbmm(X, B, X, beta=a)  # aX + (bA + cA²)X
    return X.mT if is_tall else X
