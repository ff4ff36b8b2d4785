"""Heads: maps of a student's embedding or tokens to a teacher's target; not part of the student.

A trainable head is needed even where dimensions agree, or the student is worse. All heads work on
the last axis, for embeddings [B, C] and tokens [B, N, C] alike.

Shape letters: B samples, N tokens, C channels of the student, D of the teacher.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from distill.errors import DistillError
from distill.losses.over_workers import sum_over_workers, worker_count

Levels = Tensor | Sequence[Tensor]


def mlp_head(dim_in: int, width: int, dim_out: int) -> nn.Sequential:
    """Return a head of two layers."""
    return nn.Sequential(
        nn.Linear(dim_in, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, dim_out)
    )


class ResidualHead(nn.Module):
    """A linear map, residual blocks, and a linear map to the target.

    Source: the adaptor "MLP2" of AM-RADIO (Ranzinger et al. 2024, arXiv 2312.06709).

    Args:
        dim_in: number of input channels C.
        width: number of channels of the blocks.
        dim_out: number of output channels D.
        blocks: number of residual blocks.
    """

    def __init__(self, dim_in: int, width: int, dim_out: int, *, blocks: int = 1) -> None:
        super().__init__()
        self.first = nn.Linear(dim_in, width)
        self.blocks = nn.ModuleList(_norm_act_linear(width, width) for _ in range(blocks))
        self.last = _norm_act_linear(width, dim_out)

    def forward(self, x_BC: Tensor) -> Tensor:
        """Predict targets [B, D]."""
        x_BW: Tensor = self.first(x_BC)
        for block in self.blocks:
            x_BW = x_BW + block(x_BW)
        out_BD: Tensor = self.last(x_BW)
        return out_BD


class LadderHead(nn.Module):
    """A small head on each of several levels of the student; their sum is the prediction.

    Source: the ladder of projectors of UNIC (arXiv 2408.05088); there the last level's is the
    widest (3072 against 768).

    Args:
        dims_in: channels of each level; the last level is the student's own output.
        width: hidden units of each level's head; the last head has four times as many.
        dim_out: number of output channels D.
    """

    def __init__(self, dims_in: Sequence[int], width: int, dim_out: int) -> None:
        super().__init__()
        widths = [width] * (len(dims_in) - 1) + [4 * width]
        self.rungs = nn.ModuleList(
            mlp_head(dim, hidden, dim_out) for dim, hidden in zip(dims_in, widths, strict=True)
        )

    def forward(self, levels: Levels) -> Tensor:
        """Predict targets [B, D] from levels [B, C_i].

        Raises:
            DistillError: the number of levels is not the number of heads.
        """
        if isinstance(levels, Tensor) or len(levels) != len(self.rungs):
            received = "one tensor" if isinstance(levels, Tensor) else f"{len(levels)} levels"
            msg = f"a ladder of {len(self.rungs)} levels got {received}; give it one tensor a level"
            raise DistillError(msg)
        rungs = [rung(level) for rung, level in zip(self.rungs, levels, strict=True)]
        out_BD: Tensor = sum(rungs[1:], start=rungs[0])
        return out_BD


class WorkersBatchNorm(nn.BatchNorm1d):
    """A batch norm over the samples of all workers, on CPUs as well (torch's own needs GPUs).

    Without it a loss of normalised outputs would depend on the number of workers.
    """

    def forward(self, x_BD: Tensor) -> Tensor:
        """Normalise [B, D]; in training by mean and variance over all workers' samples."""
        if not self.training or worker_count() == 1:
            return super().forward(x_BD)
        x = x_BD.float()
        count = sum_over_workers(x.new_tensor([len(x)]))
        mean_D = sum_over_workers(x.sum(dim=0)) / count
        variance_D = sum_over_workers((x - mean_D).square().sum(dim=0)) / count
        with torch.no_grad():
            unbiased_D = variance_D * count / (count - 1)
            for running, now in ((self.running_mean, mean_D), (self.running_var, unbiased_D)):
                if running is not None:
                    running.lerp_(now.to(running.dtype), self.momentum or 0.0)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        normed = (x - mean_D) * (variance_D + self.eps).rsqrt()
        if self.affine:
            normed = normed * self.weight + self.bias
        return normed.to(x_BD.dtype)


class NormedHead(nn.Module):
    """A linear map with outputs normalised over the batch, as standardised targets are.

    Source: the projector of Miles and Mikolajczyk 2024, which its log-sum loss needs: without it
    the loss is hardly sensitive to outputs that are far away.

    Args:
        dim_in: number of input channels C.
        dim_out: number of output channels D.
    """

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.map = nn.Linear(dim_in, dim_out)
        self.norm = WorkersBatchNorm(dim_out, affine=False)

    def forward(self, x_BC: Tensor) -> Tensor:
        """Predict targets [B, D], or [B, N, D] of tokens."""
        out: Tensor = self.map(x_BC)
        normed: Tensor = self.norm(out.flatten(0, -2)).view(out.shape)
        return normed


def _norm_act_linear(dim_in: int, dim_out: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(dim_in), nn.GELU(), nn.Linear(dim_in, dim_out))


def _ladder(dim_in: int | Sequence[int], width: int, dim_out: int) -> nn.Module:
    # An output of one level has one rung, which takes it as it is.
    if isinstance(dim_in, int):
        return mlp_head(dim_in, 4 * width, dim_out)
    return LadderHead(dim_in, width, dim_out)


FLAT_HEADS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "linear": lambda dim_in, _width, dim_out: nn.Linear(dim_in, dim_out),
    "mlp": mlp_head,
    "normed": lambda dim_in, _width, dim_out: NormedHead(dim_in, dim_out),
    "residual": ResidualHead,
}
HEADS = (*FLAT_HEADS, "ladder")


def make_head(name: str, dim_in: int | Sequence[int], *, width: int, dim_out: int) -> nn.Module:
    """Return a head by name: linear, normed (both without width), mlp, residual, ladder.

    Raises:
        DistillError: the name is not known, or a head of one level gets several levels.
    """
    if name == "ladder":
        return _ladder(dim_in, width, dim_out)
    if name not in FLAT_HEADS:
        msg = f"no head '{name}'; known are {', '.join(HEADS)}"
        raise DistillError(msg)
    if not isinstance(dim_in, int):
        msg = f"a head '{name}' takes one level, {len(dim_in)} given; take 'ladder'"
        raise DistillError(msg)
    return FLAT_HEADS[name](dim_in, width, dim_out)


class Heads(nn.Module):
    """One head per teacher and output: the class token and patch tokens never share a head.

    Args:
        name: kind of head.
        dims_in: channels of each of the student's outputs ("cls", "patch", ...); for a ladder the
            channels of all levels.
        dims_out: target width D of each (teacher, output).
        width: number of hidden units.

    Raises:
        DistillError: a target needs an output that the student does not have.
    """

    def __init__(
        self,
        name: str,
        dims_in: Mapping[str, int | Sequence[int]],
        dims_out: Mapping[tuple[str, str], int],
        *,
        width: int,
    ) -> None:
        super().__init__()
        missing = sorted({output for _, output in dims_out} - set(dims_in))
        if missing:
            msg = f"targets of outputs {missing} given; the student has {sorted(dims_in)}"
            raise DistillError(msg)
        # Module names may not hold dots or be empty: a target's place is its name.
        self.targets = tuple(dims_out)
        self.heads = nn.ModuleList(
            make_head(name, dims_in[output], width=width, dim_out=dim)
            for (_, output), dim in dims_out.items()
        )

    def forward(self, inputs: Mapping[tuple[str, str], Levels]) -> dict[tuple[str, str], Tensor]:
        """Predict the targets [B, D] or [B, N, D] of each (teacher, output) that has an input."""
        pairs = zip(self.targets, self.heads, strict=True)
        return {target: head(inputs[target]) for target, head in pairs if target in inputs}
