"""Networks of the teacher cards: timm's by name, and those that timm has only in part.

All offer timm's protocol: `forward_features` returns tokens [B, N, D] after the final norm, prefix
tokens first (maps [B, C, H, W] where there are no tokens), and `forward_head` makes the network's
own embedding [B, D] of them. No weights are read here and nothing is downloaded.

Letters in names: B images, C channels, H W pixels, N tokens, D their length.
"""

import difflib
import importlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import timm
import timm.layers
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ingest.errors import TeacherError
from ingest.teachers.weights.weights_files import has_pretrained

NONE: Mapping[str, Any] = MappingProxyType({})
# What would read files or the network, or is decided by the card's other fields.
REFUSED = {
    "cache_dir", "checkpoint_path", "img_size", "num_classes", "pretrained", "pretrained_cfg",
    "pretrained_cfg_overlay", "scriptable",
}  # fmt: skip
STEM_STRIDE = 4


def build(
    architecture: str,
    input_px: int,
    arguments: Mapping[str, Any] = NONE,
    *,
    pretrained: bool = False,
) -> nn.Module:
    """Build a network without its classifier, with random weights, for inputs of `input_px`.

    Args:
        architecture: timm's name of the network, or a name of `OWN`.
        input_px: side of its square inputs.
        arguments: arguments of its constructor; an argument that ends in `_layer` is the name of a
            module in timm.layers or torch.nn.
        pretrained: whether the weights are timm's own, from the hub or its cache on this machine.

    Raises:
        TeacherError: there is no such network, layer or argument, or timm has no weights of it.
    """
    wrong = sorted(REFUSED & set(arguments))
    if wrong:
        msg = f"{architecture} can't be given {', '.join(wrong)}: the card's other fields say it"
        raise TeacherError(msg)
    built = {
        name: _layer(argument)
        if name.endswith("_layer") and isinstance(argument, str)
        else argument
        for name, argument in arguments.items()
    }
    if pretrained:
        _check_pretrained(architecture)
    try:
        if pretrained:
            return TimmNetwork(architecture)(input_px, built, pretrained=True)
        return OWN.get(architecture, TimmNetwork(architecture))(input_px, built)
    except TypeError as error:
        msg = f"{architecture} can't be built with {dict(arguments)}: {error}"
        raise TeacherError(msg) from error


def _check_pretrained(architecture: str) -> None:
    """Refuse a network of which timm has no weights, or none that can be had here."""
    config = (
        None
        if architecture in OWN
        else timm.get_pretrained_cfg(architecture, allow_unregistered=True)
    )
    if config is None or not config.hf_hub_id:
        msg = f"timm has no pretrained weights of {architecture}"
        raise TeacherError(msg)
    if not has_pretrained(config.hf_hub_id):
        msg = f"the hub, which has timm's weights of {architecture}, can't be reached"
        raise TeacherError(msg)


def _layer(name: str) -> Callable[..., nn.Module]:
    for where in (timm.layers, nn):
        member: Any = getattr(where, name, None)
        # timm's SwiGLUPacked is a partial of a module.
        made = getattr(member, "func", member)
        if isinstance(made, type) and issubclass(made, nn.Module):
            layer: Callable[..., nn.Module] = member
            return layer
    msg = f"no layer '{name}': give the name of a module in timm.layers or torch.nn"
    raise TeacherError(msg)


class TimmNetwork:
    """A builder of the network that timm has under a name.

    Args:
        architecture: timm's name of it.
    """

    def __init__(self, architecture: str) -> None:
        self.architecture = architecture

    def __call__(
        self, input_px: int, arguments: Mapping[str, Any], *, pretrained: bool = False
    ) -> nn.Module:
        """Build the network for an input size; a name that timm does not know is refused."""
        # Names with a colon ("hf-hub:...") would be fetched; is_model knows registered ones alone.
        if not timm.is_model(self.architecture):
            close = difflib.get_close_matches(self.architecture, [*OWN, *timm.list_models()], n=1)
            hint = f"did you mean '{close[0]}'?" if close else "see timm.list_models()"
            msg = f"no network '{self.architecture}': {hint}"
            raise TeacherError(msg)
        sized = size_argument(self.architecture, input_px)
        model: nn.Module = timm.create_model(
            self.architecture, pretrained=pretrained, num_classes=0, **sized, **arguments
        )
        return model


def size_argument(architecture: str, input_px: int) -> dict[str, int]:
    """Return the argument by which timm builds a network for an input size; {} if it has none.

    Networks whose weights are made for one size are those whose constructor takes it.
    """
    fixed = timm.get_pretrained_cfg(architecture).fixed_input_size
    return {"img_size": input_px} if fixed else {}


class Plain(nn.Module):
    """Any network under timm's protocol: its output is both its features and its embedding.

    Args:
        network: network that returns [B, D], or tokens [B, N, D].
        num_prefix_tokens: number of tokens before the patch tokens, if it returns tokens.
    """

    def __init__(self, network: nn.Module, num_prefix_tokens: int = 0) -> None:
        super().__init__()
        self.network, self.num_prefix_tokens = network, num_prefix_tokens
        self.output_fmt = getattr(network, "output_fmt", "NCHW")

    def forward_features(self, x_BCHW: Tensor) -> Tensor:
        """Return the output of the network."""
        features: Tensor = self.network(x_BCHW)
        return features

    def forward_head(self, features: Tensor) -> Tensor:
        """Return the features unchanged."""
        return features

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the output of the network."""
        return self.forward_features(x_BCHW)


class Headed(nn.Module):
    """A trunk of timm's, with the head of another implementation.

    Args:
        trunk: the network of timm.
    """

    trunk: Any

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.num_prefix_tokens = int(getattr(trunk, "num_prefix_tokens", 0))

    def forward_features(self, x_BCHW: Tensor) -> Tensor:
        """Return the tokens [B, N, D]."""
        tokens_BND: Tensor = self.trunk.forward_features(x_BCHW)
        return tokens_BND

    def forward_intermediates(self, x_BCHW: Tensor, **options: Any) -> Any:  # noqa: ANN401
        """Return the outputs of blocks, as timm does."""
        return self.trunk.forward_intermediates(x_BCHW, **options)

    def forward_head(self, features: Tensor) -> Tensor:
        """Return the embedding [B, D] that the network's authors use."""
        raise NotImplementedError

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the embedding [B, D] that the network's authors use."""
        return self.forward_head(self.forward_features(x_BCHW))


class Conch(Headed):
    """CONCH's vision tower up to the pooled embedding that is used for slides [B, 512].

    That is before its contrastive projection and not normalised: `encode_image(proj_contrast=False,
    normalize=False)` of mahmoodlab/CONCH, `conch/open_clip_custom`.
    """

    def __init__(self, input_px: int, arguments: Mapping[str, Any]) -> None:
        super().__init__(TimmNetwork("vit_base_patch16_224")(input_px, arguments))
        self.attn_pool_contrast = _TorchPooler(512, 768)
        self.ln_contrast = nn.LayerNorm(512)

    def forward_head(self, features: Tensor) -> Tensor:
        """Return all tokens, the class token's too, pooled by one query's attention [B, D]."""
        pooled: Tensor = self.ln_contrast(self.attn_pool_contrast(features))
        return pooled


class _TorchPooler(nn.Module):
    """A learned query attends to tokens, by torch's own module."""

    def __init__(self, dim: int, token_dim: int, heads: int = 8) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(1, dim))
        self.attn = nn.MultiheadAttention(
            dim, heads, kdim=token_dim, vdim=token_dim, batch_first=True
        )
        self.ln_q, self.ln_k = nn.LayerNorm(dim), nn.LayerNorm(token_dim)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """Return the pooled embedding [B, D]."""
        keys = self.ln_k(tokens_BND)
        query = self.ln_q(self.query).expand(len(keys), 1, -1)
        pooled: Tensor = self.attn(query, keys, keys, need_weights=False)[0][:, 0]
        return pooled


class Conch15(Headed):
    """CONCH v1.5's vision tower [B, 768], the encoder that TITAN reads.

    From the module of that name in mahmoodlab/TRIDENT's `model_zoo` and in the hub's
    MahmoodLab/TITAN.
    """

    def __init__(self, input_px: int, arguments: Mapping[str, Any]) -> None:
        super().__init__(
            TimmNetwork("vit_large_patch16_224")(input_px, {"init_values": 1.0, **arguments})
        )
        self.attn_pool_contrast = _LinearPooler(768, 1024)
        self.ln_contrast = nn.LayerNorm(768)

    def forward_head(self, features: Tensor) -> Tensor:
        """Return all tokens, the class token's too, pooled by one query's attention [B, D]."""
        pooled: Tensor = self.ln_contrast(self.attn_pool_contrast(features))
        return pooled


class _LinearPooler(nn.Module):
    """A learned query attends to tokens, by projections without bias."""

    def __init__(self, dim: int, token_dim: int, heads: int = 8) -> None:
        super().__init__()
        self.query, self.heads = nn.Parameter(torch.zeros(1, dim)), heads
        self.ln_q, self.ln_k = nn.LayerNorm(dim), nn.LayerNorm(token_dim)
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_kv = nn.Linear(token_dim, 2 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """Return the pooled embedding [B, D]."""
        query = self.to_q(self.ln_q(self.query)).expand(len(tokens_BND), 1, -1)
        keys, values = self.to_kv(self.ln_k(tokens_BND)).chunk(2, dim=-1)
        split = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (query, keys, values))
        pooled: Tensor = self.to_out(F.scaled_dot_product_attention(*split).flatten(1))
        return pooled


class Keep(Headed):
    """KEEP's `encode_image` [B, 768], of length 1 (MAGIC-AI4Med/KEEP, `quick_start`)."""

    def __init__(self, input_px: int, arguments: Mapping[str, Any]) -> None:
        super().__init__(
            TimmNetwork("vit_large_patch16_224")(input_px, {"init_values": 1e-5, **arguments})
        )
        self.head = nn.Sequential(nn.Linear(1024, 768), nn.GELU(), nn.Linear(768, 768))

    def forward_head(self, features: Tensor) -> Tensor:
        """Return the class token after two more layers, with norm 1 [B, D]."""
        return F.normalize(self.head(self.trunk.forward_head(features)), dim=-1)


class CTransPath(Headed):
    """CTransPath [B, 768]: a Swin transformer whose stem is convolutions (Xiyue-Wang/TransPath)."""

    def __init__(self, input_px: int, arguments: Mapping[str, Any]) -> None:
        stem = {"embed_layer": _ConvStem}
        super().__init__(
            TimmNetwork("swin_tiny_patch4_window7_224")(input_px, {**stem, **arguments})
        )

    def forward_features(self, x_BCHW: Tensor) -> Tensor:
        """Return the last grid as tokens [B, N, D], row after row."""
        grid_BHWD: Tensor = self.trunk.forward_features(x_BCHW)
        return grid_BHWD.flatten(1, 2)

    def forward_head(self, features: Tensor) -> Tensor:
        """Return the mean of all tokens [B, D]."""
        return features.mean(dim=1)


class _ConvStem(nn.Module):
    """Patches of 4 px by two strided convolutions; for timm's Swin, which passes the arguments."""

    def __init__(
        self,
        img_size: int = 224,
        embed_dim: int = 96,
        norm_layer: Callable[[int], nn.Module] = nn.LayerNorm,
        **_: object,
    ) -> None:
        super().__init__()
        side, narrow = img_size // STEM_STRIDE, embed_dim // 8
        self.img_size, self.patch_size = (img_size, img_size), (STEM_STRIDE, STEM_STRIDE)
        self.grid_size, self.num_patches = (side, side), side**2
        self.proj = nn.Sequential(
            *_halving(3, narrow), *_halving(narrow, 2 * narrow), nn.Conv2d(2 * narrow, embed_dim, 1)
        )
        self.norm = norm_layer(embed_dim)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the tokens [B, H, W, D] in the layout of timm's Swin."""
        tokens: Tensor = self.norm(self.proj(x_BCHW).permute(0, 2, 3, 1))
        return tokens


def _halving(channels: int, wider: int) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, wider, 3, stride=2, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(wider), nn.ReLU()]


def _resnet50_layer3(input_px: int, arguments: Mapping[str, Any]) -> nn.Module:
    """Build a ResNet-50 that ends after its third stage [B, 1024], as CLAM uses it."""
    model: Any = TimmNetwork("resnet50")(input_px, arguments)
    model.layer4, model.num_features = nn.Identity(), 1024
    third: nn.Module = model
    return third


def _later(name: str) -> Callable[[int, Mapping[str, Any]], nn.Module]:
    """Return a builder that imports its class of `headed_networks` when it is used."""

    def build_network(input_px: int, arguments: Mapping[str, Any]) -> nn.Module:
        module = importlib.import_module("ingest.teachers.heads.headed_networks")
        network: nn.Module = getattr(module, name)(input_px, arguments)
        return network

    return build_network


OWN: dict[str, Callable[[int, Mapping[str, Any]], nn.Module]] = {
    "clip": _later("Clip"),
    "coca": _later("Coca"),
    "gemma4": _later("Gemma"),
    "genbio": _later("GenBio"),
    "isight": _later("ISight"),
    "mettle": _later("Mettle"),
    "conch": Conch,
    "conch15": Conch15,
    "ctranspath": CTransPath,
    "keep": Keep,
    "resnet50_layer3": _resnet50_layer3,
}
