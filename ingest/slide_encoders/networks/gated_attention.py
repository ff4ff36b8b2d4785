"""Slide encoders that weigh tiles by gated attention: FEATHER, MADELEINE, CHIEF and EAGLE.

A tile's score is a linear function of tanh(A h) * sigmoid(B h) (Ilse et al., arXiv 1802.04712); the
softmax of scores weighs the tiles. The encoders differ in what is scored and what is averaged. They
are written from the formulas; names of weights are those of the authors' files, in which layers of
their training (dropout) keep their numbers.

Shape letters: N tiles, D width of a tile's features, E width of an embedding, K heads.
"""

import torch
from torch import Tensor, nn

from ingest.errors import SlideEncoderError
from ingest.slide_encoders.slide_card import SlideCard
from ingest.slide_encoders.slide_network import NetworkInputs, SlideNetwork

#: Tiles of which EAGLE averages the features.
EAGLE_TILES = 25


class GatedScore(nn.Module):
    """The scores of tiles.

    Args:
        dim: width of a tile.
        hidden: width of the two layers that are multiplied.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.attention_a = nn.Sequential(nn.Linear(dim, hidden), nn.Tanh())
        self.attention_b = nn.Sequential(nn.Linear(dim, hidden), nn.Sigmoid())
        self.attention_c = nn.Linear(hidden, 1)

    def forward(self, h_NE: Tensor) -> Tensor:
        """Return a score of each tile [N]."""
        score_N1: Tensor = self.attention_c(self.attention_a(h_NE) * self.attention_b(h_NE))
        return score_N1[:, 0]


class Feather(SlideNetwork):
    """FEATHER: gated attention on embedded tiles, trained on 108 tasks at once.

    Args:
        input_dim: width of a tile's features.
        dim: width of an embedded tile.
        hidden: width of the attention's layers.
    """

    def __init__(self, *, input_dim: int, dim: int = 512, hidden: int = 384) -> None:
        super().__init__()
        self.patch_embed = nn.Sequential(nn.Linear(input_dim, dim), nn.ReLU())
        self.global_attn = GatedScore(dim, hidden)

    def forward(self, x_ND: Tensor, places_N2: Tensor) -> Tensor:
        """Return the weighted mean of embedded tiles [E]."""
        del places_N2
        h_NE = self.patch_embed(x_ND)
        vector_E: Tensor = self.global_attn(h_NE).softmax(dim=0) @ h_NE
        return vector_E


class Chief(SlideNetwork):
    """CHIEF: gated attention on embedded tiles weighs the tiles' own features.

    Args:
        input_dim: width of a tile's features.
        dim: width of an embedded tile.
        hidden: width of the attention's layers.
    """

    def __init__(self, *, input_dim: int = 768, dim: int = 512, hidden: int = 256) -> None:
        super().__init__()
        layers = (nn.Linear(input_dim, dim), nn.ReLU(), nn.Identity(), GatedScore(dim, hidden))
        self.attention_net = nn.Sequential(*layers)

    def scores(self, x_ND: Tensor) -> Tensor:
        """Return the score of each tile [N]."""
        scores_N: Tensor = self.attention_net(x_ND)
        return scores_N

    def forward(self, x_ND: Tensor, places_N2: Tensor) -> Tensor:
        """Return the weighted mean of the tiles' features [D]."""
        del places_N2
        return self.scores(x_ND).softmax(dim=0) @ x_ND


class Eagle(Chief):
    """EAGLE: the mean of Virchow2's features of the 25 tiles that CHIEF weighs most.

    Args:
        widths: widths of the two columns: those that CHIEF scores, and those that are averaged.
        dim: width of an embedded tile in CHIEF.
        hidden: width of CHIEF's attention's layers.
    """

    def __init__(self, *, widths: tuple[int, int], dim: int = 512, hidden: int = 256) -> None:
        super().__init__(input_dim=widths[0], dim=dim, hidden=hidden)
        self.widths = widths

    def forward(self, x_ND: Tensor, places_N2: Tensor) -> Tensor:
        """Return the mean of the second column's features of the chosen tiles [D]."""
        del places_N2
        scored_ND, averaged_ND = torch.split(x_ND, list(self.widths), dim=1)
        top = self.scores(scored_ND).topk(min(EAGLE_TILES, len(x_ND))).indices
        return averaged_ND[top].mean(dim=0)


class HeadsOfScores(nn.Module):
    """MADELEINE's pooling: tiles embedded for each head, and each head's own attention.

    Args:
        input_dim: width of a tile's features.
        dim: width of an embedded tile of one head.
        heads: number of heads.
    """

    def __init__(self, input_dim: int, dim: int, heads: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((input_dim, dim), (dim, dim), (dim, dim * heads)):
            layers += [nn.Linear(inputs, outputs), nn.LayerNorm(outputs), nn.GELU(), nn.Identity()]
        self.pre_attn = nn.Sequential(*layers)
        self.attn = nn.ModuleList([GatedScore(dim, dim) for _ in range(heads)])

    def forward(self, x_ND: Tensor) -> Tensor:
        """Return the weighted means of all heads, head after head within each number [E K]."""
        h_NEK = self.pre_attn(x_ND).reshape(len(x_ND), -1, len(self.attn))
        means = [
            score(h_NEK[:, :, head]).softmax(dim=0) @ h_NEK[:, :, head]
            for head, score in enumerate(self.attn)
        ]
        return torch.stack(means, dim=1).flatten()


class Madeleine(SlideNetwork):
    """MADELEINE's encoder of H&E slides.

    Args:
        input_dim: width of a tile's features.
        dim: width of the slide's vector.
        heads: number of heads.
    """

    def __init__(self, *, input_dim: int = 512, dim: int = 512, heads: int = 4) -> None:
        super().__init__()
        self.wsi_embedders = HeadsOfScores(input_dim, dim, heads)
        self.projector = nn.Linear(dim * heads, dim)

    def forward(self, x_ND: Tensor, places_N2: Tensor) -> Tensor:
        """Return the slide's vector [E]."""
        del places_N2
        vector_E: Tensor = self.projector(self.wsi_embedders(x_ND))
        return vector_E


def build_feather(card: SlideCard, inputs: NetworkInputs) -> SlideNetwork:
    """Return FEATHER's network, without weights."""
    del inputs
    return Feather(**card.arguments)


def build_chief(card: SlideCard, inputs: NetworkInputs) -> SlideNetwork:
    """Return CHIEF's network, without weights."""
    del inputs
    return Chief(**card.arguments)


def build_madeleine(card: SlideCard, inputs: NetworkInputs) -> SlideNetwork:
    """Return MADELEINE's network, without weights."""
    del inputs
    return Madeleine(**card.arguments)


def build_eagle(card: SlideCard, inputs: NetworkInputs) -> SlideNetwork:
    """Return EAGLE's network, without CHIEF's weights.

    Raises:
        SlideEncoderError: there is one column, or more than two.
    """
    if len(inputs.dims) != 2:
        msg = f"{card.name} takes two columns, {' and '.join(card.inputs)}: repeat --features"
        raise SlideEncoderError(msg)
    first, second = inputs.dims
    return Eagle(widths=(first, second), **card.arguments)
