"""Nystrom attention: every token attends to every other one through M landmarks.

softmax(Q K~') pinv(softmax(Q~ K~')) softmax(Q~ K'): memory and time are O(L M), never L x L.

Shape letters: B sequences, L tokens, E width, H heads, d width of a head, M landmarks.
"""

import torch
from torch import Tensor, nn

from downstream.mil.aggregators.dropout import Dropout
from downstream.mil.padded_bags import masked_softmax


class NystromAttention(nn.Module):
    """Self-attention by the Nystrom method (Xiong et al. 2021, arXiv 2102.03902).

    A landmark is the mean of a run of neighbouring tokens, so the order of tokens matters: the
    caller sorts them. Differences from the code that TransMIL and torchmil build on:

    - Runs differ in length by one token at most. That code puts zeros in front until the length is
      a multiple of M; without a mask the zeros take part in the attention, and early landmarks may
      be made of nothing else. Where M divides L, both are the same.
    - The start value of the pseudo-inverse is scaled by each sequence's own largest row and column
      sum, not by the largest of the batch, so that a sequence does not depend on its neighbours.
    - No 33-wide convolution over the values along the sequence (TransMIL has it, torchmil not):
      along a raster scan it joins the end of a row to the start of the next.

    Args:
        width: width E, a multiple of `heads`.
        heads: number H of attention heads.
        landmarks: at most M landmarks; a sequence of fewer tokens is its own landmarks, which
            is exact attention up to the iteration's error.
        iterations: iterations of the pseudo-inverse (cubic convergence).
        dropout: dropout after the output layer.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int = 8,
        landmarks: int = 256,
        iterations: int = 6,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Sequential(nn.Linear(width, width), Dropout(dropout))
        self.heads, self.landmarks, self.iterations = heads, landmarks, iterations
        self.scale = (width // heads) ** -0.5

    def forward(self, x_BLE: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Return the attended tokens, and how much the first token attends to each.

        Tokens of a sequence come first, masked rows after them.

        Args:
            x_BLE: tokens.
            mask_BL: true where there is a token.

        Returns:
            Tokens [B, L, E], and how much the first token attends to each [B, L], mean over heads.
            The approximation may make single values of the latter slightly negative.
        """
        runs_BML, has_BM = landmark_runs(mask_BL, self.landmarks, dtype=x_BLE.dtype)
        q, k, v = (self._split(part) for part in self.qkv(x_BLE).chunk(3, dim=-1))
        # the projection has no bias, so that of the mean is the mean of the projections
        weight_q, weight_k, _ = self.qkv.weight.chunk(3)
        mean_BME = torch.bmm(runs_BML, x_BLE)
        q_mark = self._split(nn.functional.linear(mean_BME, weight_q))
        k_mark = self._split(nn.functional.linear(mean_BME, weight_k))
        near_BHLM = masked_softmax(q * self.scale @ k_mark.mT, has_BM[:, None, None])
        core_BHMM = masked_softmax(q_mark * self.scale @ k_mark.mT, has_BM[:, None, None])
        far_BHML = masked_softmax(q_mark * self.scale @ k.mT, mask_BL[:, None, None])
        core_BHMM = core_BHMM * has_BM[:, None, :, None]
        inverse = pseudo_inverse(core_BHMM, self.iterations).to(v.dtype)
        mixed = (near_BHLM.to(v.dtype) @ inverse) @ (far_BHML.to(v.dtype) @ v)
        first_BHL = (near_BHLM[:, :, :1].to(v.dtype) @ inverse @ far_BHML.to(v.dtype))[:, :, 0]
        out_BLE: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out_BLE, first_BHL.mean(dim=1)

    def _split(self, x_BLE: Tensor) -> Tensor:
        """Return tokens by head: [B, L, E] -> [B, H, L, d]."""
        return x_BLE.view(*x_BLE.shape[:2], self.heads, -1).transpose(1, 2)


def landmark_runs(mask_BL: Tensor, most: int, *, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the weights of the tokens in each landmark, a run of neighbouring tokens.

    Returns:
        Weights [B, M, L] of each token in each landmark (1 / length of its run, or 0), and
        whether each landmark exists, bool [B, M]: a sequence has no more of them than tokens.
    """
    tokens_B = mask_BL.sum(dim=1)
    marks_B = tokens_B.clamp(max=most)
    marks = min(most, mask_BL.shape[1])
    place_L = torch.arange(mask_BL.shape[1], device=mask_BL.device)
    run_BL = place_L * marks_B[:, None] // tokens_B[:, None].clamp(min=1)
    mark_M = torch.arange(marks, device=mask_BL.device)
    is_in_BML = (run_BL[:, None] == mark_M[:, None]) & mask_BL[:, None]
    length_BM = is_in_BML.sum(dim=-1).clamp(min=1)
    return is_in_BML.to(dtype) / length_BM[..., None].to(dtype), mark_M < marks_B[:, None]


def pseudo_inverse(a_BHMM: Tensor, iterations: int) -> Tensor:
    """Return the Moore-Penrose inverse of softmax matrices, by iteration; in float32 at least.

    Rows and columns of zeros (landmarks that are not there) stay zero and change nothing else.
    Source: Razavi et al. 2014, as used by Xiong et al. 2021, eq. 11.
    """
    with torch.autocast(device_type=a_BHMM.device.type, enabled=False):
        a = a_BHMM.float() if a_BHMM.dtype in {torch.float16, torch.bfloat16} else a_BHMM
        size = a.abs()
        row_B, column_B = (size.sum(dim=axis).amax(dim=(1, 2)) for axis in (-1, -2))
        z = a.mT / (row_B * column_B)[:, None, None, None]
        eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
        for _ in range(iterations):
            az = a @ z
            z = 0.25 * z @ (13 * eye - az @ (15 * eye - az @ (7 * eye - az)))
    return z
