"""Networks whose trunk is timm's and whose head, or way of reading a tile, is another's.

Letters in names: B images, C channels, H W pixels, N tokens, D their length, K atoms, R rank.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp.autocast_mode import is_autocast_available

from ingest.teachers.networks import Headed, TimmNetwork

QUERIES = 256


def _trunk(input_px: int, arguments: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """Return timm's network that `arguments` name as `trunk`, and the head's own arguments."""
    own = {name: arguments[name] for name in ("trunk", "projection") if name in arguments}
    rest = {name: argument for name, argument in arguments.items() if name not in own}
    return TimmNetwork(str(own["trunk"]))(input_px, rest), own


class Clip(Headed):
    """The image side of a CLIP [B, D], not normalised: timm's ViT and one linear layer.

    Equal to `get_image_features` of transformers' CLIPModel and to `encode_image` of open_clip.

    Args:
        input_px: side of its square inputs.
        arguments: `trunk`, timm's name of the ViT; `projection`, length of the embedding; and
            arguments of the ViT.
    """

    def __init__(self, input_px: int, arguments: Mapping[str, Any]) -> None:
        trunk, own = _trunk(input_px, arguments)
        super().__init__(trunk)
        self.proj = nn.Linear(self.trunk.num_features, own["projection"], bias=False)

    def forward_head(self, features: Tensor) -> Tensor:
        """Return the projected class token [B, D]."""
        projected: Tensor = self.proj(self.trunk.forward_head(features))
        return projected


class Coca(Headed):
    """The image side of a CoCa [B, D], of length 1: `encode_image` of open_clip's CoCa.

    Tokens have no norm of their own: it comes after the pooling by attention.

    Args:
        input_px: side of its square inputs.
        arguments: as those of `Clip`.
    """

    def __init__(self, input_px: int, arguments: Mapping[str, Any]) -> None:
        trunk, own = _trunk(input_px, {"final_norm": False, **arguments})
        super().__init__(trunk)
        dim = own["projection"]
        self.query = nn.Parameter(torch.zeros(QUERIES, dim))
        token_dim = self.trunk.num_features
        self.attn = nn.MultiheadAttention(dim, 8, kdim=token_dim, vdim=token_dim, batch_first=True)
        self.ln_q, self.ln_k = nn.LayerNorm(dim), nn.LayerNorm(token_dim)
        self.ln_post, self.proj = nn.LayerNorm(dim), nn.Linear(dim, dim, bias=False)

    def forward_head(self, features: Tensor) -> Tensor:
        """Return what the first query's attention gathers of all tokens, projected [B, D]."""
        keys = self.ln_k(features)
        query = self.ln_q(self.query[:1]).expand(len(keys), 1, -1)
        pooled = self.attn(query, keys, keys, need_weights=False)[0][:, 0]
        return F.normalize(self.proj(self.ln_post(pooled)), dim=-1)


class ISight(Headed):
    """iSight's tile embedding [B, 1024]: the mean of all projected tokens of a CLIP's ViT.

    The tokens are those before CLIP's last norm, which its training never used
    (zhihuanglab/iSight, model/patch_encoder_with_clam.py).

    Args:
        input_px: side of its square inputs.
        arguments: arguments of the ViT.
    """

    def __init__(self, input_px: int, arguments: Mapping[str, Any]) -> None:
        options = {"final_norm": False, **arguments}
        super().__init__(TimmNetwork("vit_large_patch14_clip_quickgelu_336")(input_px, options))
        width = self.trunk.num_features
        self.proj = nn.Linear(width, width)

    def forward_features(self, x_BCHW: Tensor) -> Tensor:
        """Return the projected tokens [B, N, D]."""
        tokens_BND: Tensor = self.proj(self.trunk.forward_features(x_BCHW))
        return tokens_BND

    def forward_head(self, features: Tensor) -> Tensor:
        """Return the mean of all tokens, the class token's too [B, D]."""
        return features.mean(dim=1)


class Mettle(Headed):
    """Mettle's tile embedding [B, 3072]: a refined class token, and the mean of the patch tokens.

    `e + sum_k m_k(e) Q_k P_k^T e + shift(e)` of the class token e, in float32
    (clemsgrs/slide2vec 7.1.4, encoders/models/mettle.py).

    Args:
        input_px: side of its square inputs.
        arguments: arguments of H-optimus-0's network.
    """

    def __init__(self, input_px: int, arguments: Mapping[str, Any]) -> None:
        super().__init__(TimmNetwork("vit_giant_patch14_reg4_dinov2")(input_px, arguments))
        self.head = _Refinement(self.trunk.num_features)

    def forward_head(self, features: Tensor) -> Tensor:
        """Return the refined class token, joined with the mean of the patch tokens [B, 2 D]."""
        kind = features.device.type
        own = torch.autocast(kind, enabled=False) if is_autocast_available(kind) else nullcontext()
        with own:
            tokens = features.float()
            patches = tokens[:, self.num_prefix_tokens :].mean(dim=1)
            return torch.cat([self.head(tokens[:, 0]), patches], dim=-1)


class _Refinement(nn.Module):
    """A correction of an embedding by 16 atoms of rank 8, mixed by the embedding itself."""

    def __init__(self, dim: int, atoms: int = 16, rank: int = 8, hidden: int = 256) -> None:
        super().__init__()
        self.P = nn.Parameter(torch.zeros(atoms, dim, rank))
        self.Q = nn.Parameter(torch.zeros(atoms, dim, rank))
        self.mix = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, atoms))
        self.shift = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, e_BD: Tensor) -> Tensor:
        """Return the corrected embedding [B, D]."""
        by_atom_BKR = torch.einsum("bd,kdr->bkr", e_BD, self.P)
        changes_BKD = torch.einsum("bkr,kdr->bkd", by_atom_BKR, self.Q)
        mixed_BD = (self.mix(e_BD).unsqueeze(-1) * changes_BKD).sum(dim=1)
        refined_BD: Tensor = e_BD + mixed_BD + self.shift(e_BD)
        return refined_BD


class GenBio(Headed):
    """GenBio-PathFM [B, 4608]: red, green and blue each as a picture of one channel.

    The three pictures' tokens are joined, so a token has three times the trunk's length
    (genbio-ai/genbio-pathfm, genbio_pathfm/model.py).

    Args:
        input_px: side of its square inputs.
        arguments: arguments of timm's DINOv3 network of one channel.
    """

    def __init__(self, input_px: int, arguments: Mapping[str, Any]) -> None:
        options = {"in_chans": 1, "global_pool": "token", **arguments}
        super().__init__(TimmNetwork("vit_huge_plus_patch16_dinov3")(input_px, options))

    def forward_features(self, x_BCHW: Tensor) -> Tensor:
        """Return the tokens of the three channels side by side [B, N, 3 D]."""
        return _side_by_side(self.trunk.forward_features(_channels(x_BCHW)))

    def forward_intermediates(self, x_BCHW: Tensor, **options: Any) -> Any:  # noqa: ANN401
        """Return the outputs of blocks, as timm does, of the three channels side by side."""
        last, between = self.trunk.forward_intermediates(_channels(x_BCHW), **options)
        return _side_by_side(last), [
            (_side_by_side(patches), _side_by_side(prefix)) for patches, prefix in between
        ]

    def forward_head(self, features: Tensor) -> Tensor:
        """Return the class tokens of the three channels [B, 3 D]."""
        return features[:, 0]


class Gemma(Headed):
    """The vision tower of Gemma 4 [B, D]: the mean of its soft tokens.

    A soft token is the mean of 3 x 3 patches times the root of D, so their mean is that of all
    patches (`global_pool='soft'` of timm's gemma4_vit.py, and mahmoodlab/TRIDENT's mean of them).

    Args:
        input_px: side of its square inputs, a multiple of 48.
        arguments: arguments of timm's network.
    """

    def __init__(self, input_px: int, arguments: Mapping[str, Any]) -> None:
        super().__init__(TimmNetwork("gemma4_vit_167m_enc")(input_px, arguments))

    def forward_head(self, features: Tensor) -> Tensor:
        """Return the mean of the patch tokens times the root of their length [B, D]."""
        mean_BD: Tensor = features.mean(dim=1) * features.shape[-1] ** 0.5
        return mean_BD


def _channels(x_BCHW: Tensor) -> Tensor:
    """Return each channel as a picture of its own [3 B, 1, H, W]."""
    return x_BCHW.flatten(0, 1).unsqueeze(1)


def _side_by_side(tokens: Tensor) -> Tensor:
    """Join the tokens of each picture's channels: [3 B, N, D] to [B, N, 3 D]."""
    pictures, places, dim = tokens.shape
    joined = tokens.reshape(pictures // 3, 3, places, dim).transpose(1, 2)
    return joined.reshape(pictures // 3, places, 3 * dim)
