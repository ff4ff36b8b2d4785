"""From a file of weights to a filled network: names as they are in the wild, turned into timm's.

A card's `keys` state the names in its file. Every tensor of the network must be filled from the
file and every tensor of the file must be used or named here as of no use: a name that is quietly
left at its random start is the worst kind of wrong. Nothing is ever unpickled.
"""

import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from ingest.errors import TeacherError
from ingest.teachers.cards.card import Card
from ingest.teachers.weights.position_tables import (
    Resample,
    as_conch,
    as_conch15,
    as_hugging_face,
    as_radio,
    as_radio_aligned,
    as_timm,
    fitted,
)

Tensors = dict[str, Tensor]
Rename = Callable[[Tensors, nn.Module], Tensors]
Rules = tuple[tuple[str, str], ...]
# A counter of training steps, which old files lack and inference does not read.
COUNTER = "num_batches_tracked"
SHORT = 120


@dataclass(frozen=True, kw_only=True)
class Keys:
    """The rules that turn the names in a kind of file into a network's names.

    Attributes:
        unused: pattern of the names that the network does not use.
        rules: patterns and their replacements, applied one after the other.
        rename: function for changes that rules can't express; called after them.
        resample: function that resizes a position table to the network's; refused if None.
    """

    unused: str = ""
    rules: Rules = ()
    rename: Rename | None = None
    resample: Resample | None = None


def read_weights(path: Path) -> Tensors:
    """Return the tensors of a file by name; names of nested dictionaries are joined by dots.

    Args:
        path: a .safetensors file, or a PyTorch file, in which objects are refused.

    Raises:
        TeacherError: the file is of neither kind, or holds objects that would have to be unpickled.
    """
    try:
        if path.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(path))
        return dict(_flat(torch.load(path, map_location="cpu", weights_only=True)))
    except pickle.UnpicklingError as error:
        msg = (
            f"{path.name} is no file of weights, or holds pickled objects, which could run any "
            "code and are never read: give its tensors as .safetensors"
        )
        raise TeacherError(msg) from error
    except Exception as error:  # a damaged pickle fails in ten ways
        why = " ".join(f"{type(error).__name__}: {error}".split())[:SHORT]
        msg = f"{path.name} can't be read as weights, is it whole? {why}"
        raise TeacherError(msg) from error


def _flat(content: object, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    if not isinstance(content, Mapping):
        return
    for name, tensor in content.items():
        if isinstance(tensor, Tensor):
            yield f"{prefix}{name}", tensor
        else:
            yield from _flat(tensor, f"{prefix}{name}.")


def load_weights(model: nn.Module, path: Path, card: Card) -> None:
    """Fill a network with the weights of a file.

    Args:
        model: network that was built from the card.
        path: path of the file.
        card: card of the network, whose `keys` translate the file's names.

    Raises:
        TeacherError: the file can't be read, lacks a tensor, or has a tensor too many or of another
            shape.
    """
    if card.keys not in KINDS:
        msg = f"{card.name}: no kind of weights '{card.keys}'; known are {', '.join(KINDS)}"
        raise TeacherError(msg)
    keys, shapes = KINDS[card.keys], model.state_dict()
    tensors = renamed(read_weights(path), keys, model)
    tensors = fitted(tensors, model, keys.resample) if keys.resample else tensors
    needed = [name for name in shapes if not name.endswith(COUNTER)]
    wrong = [n for n in needed if n not in tensors or tensors[n].shape != shapes[n].shape]
    wrong += [n for n in tensors if n not in shapes]
    if wrong:
        msg = (
            f"{path.name} does not hold the weights of {card.architecture} "
            f"({len(wrong)} of {len(shapes)} tensors differ, first {wrong[0]})"
        )
        raise TeacherError(msg)
    model.load_state_dict(tensors, strict=False)


def renamed(tensors: Tensors, keys: Keys, model: nn.Module) -> Tensors:
    """Return the tensors of a file under the network's names, without unused tensors."""
    used = {n: x for n, x in tensors.items() if not (keys.unused and re.fullmatch(keys.unused, n))}
    for pattern, into in keys.rules:
        used = {re.sub(pattern, into, name): tensor for name, tensor in used.items()}
    return keys.rename(used, model) if keys.rename else used


def _without_classifier(tensors: Tensors, model: nn.Module) -> Tensors:
    """Return tensors with timm's own names, without the classifier that the network names."""
    named = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    heads = tuple(f"{name}." for name in ([named] if isinstance(named, str) else named))
    return {name: tensor for name, tensor in tensors.items() if not (name + ".").startswith(heads)}


def _in_order(tensors: Tensors, model: nn.Module) -> Tensors:
    """Return tensors of another implementation under the network's names, matched in order."""
    shapes = model.state_dict()
    if set(shapes) <= set(tensors):
        return _without_classifier(tensors, model)
    names = [*shapes, *list(tensors)[len(shapes) :]]
    return dict(zip(names, tensors.values(), strict=False))


def _joined(tensors: Tensors, names: tuple[str, str, str]) -> Tensors:
    """Join query, key and value layers into timm's one layer, `attn.qkv`."""
    out = dict(tensors)
    for name in tensors:
        if f".attn.{names[0]}." not in name:
            continue
        parts = [name.replace(f".{names[0]}.", f".{other}.") for other in names]
        if all(part in out for part in parts):
            joined = torch.cat([out.pop(part) for part in parts])
            out[name.replace(f".{names[0]}.", ".qkv.")] = joined
    return out


def _registers_apart(tensors: Tensors, _: nn.Module) -> Tensors:
    """Move the class token's position into the token: with registers, timm has no such position."""
    if "register_tokens" not in tensors or "pos_embed" not in tensors or "cls_token" not in tensors:
        return tensors
    table, out = tensors["pos_embed"], dict(tensors)
    out["reg_token"] = out.pop("register_tokens")
    return {**out, "cls_token": out["cls_token"] + table[:, :1], "pos_embed": table[:, 1:]}


def _hf(tensors: Tensors, model: nn.Module) -> Tensors:
    return _registers_apart(_joined(tensors, ("query", "key", "value")), model)


def _musk(tensors: Tensors, _: nn.Module) -> Tensors:
    out = _joined(tensors, ("q_proj", "k_proj", "v_proj"))
    if "positions" in out:
        # Its first two rows are padding, from Fairseq.
        out["pos_embed"] = out.pop("positions")[None, 2:]
    return out


def _dinov3(tensors: Tensors, model: nn.Module) -> Tensors:
    """Leave out biases of query, key and value that are all zero, as timm's network does."""
    shapes = model.state_dict()
    return {
        name: tensor
        for name, tensor in tensors.items()
        if name in shapes or not name.endswith("attn.qkv.bias") or tensor.any()
    }


def _clip(tensors: Tensors, _: nn.Module) -> Tensors:
    """Shape the class token and the position table of a CLIP as timm does; join its q, k and v."""
    out = _joined(tensors, ("q_proj", "k_proj", "v_proj"))
    for name, axes in (("trunk.cls_token", 3), ("trunk.pos_embed", 3)):
        if name in out:
            out[name] = out[name].reshape((1,) * (axes - out[name].ndim) + out[name].shape)
    if "projection" in out:  # open_clip multiplies from the other side
        out["proj.weight"] = out.pop("projection").T
    return out


def _siglip(tensors: Tensors, _: nn.Module) -> Tensors:
    out = _joined(tensors, ("q_proj", "k_proj", "v_proj"))
    for kind in ("weight", "bias"):
        if (whole := out.pop(f"attn_pool.in_proj_{kind}", None)) is not None:
            width = len(whole) // 3
            out[f"attn_pool.q.{kind}"], out[f"attn_pool.kv.{kind}"] = whole[:width], whole[width:]
    if "pos_embed" in out and out["pos_embed"].ndim == 2:
        out["pos_embed"] = out["pos_embed"][None]
    return out


def _radio(tensors: Tensors, _: nn.Module) -> Tensors:
    """Shape patches and tokens of a RADIO as timm does: its class tokens but one are registers."""
    out = dict(tensors)
    if "patches" in out:
        weight = out.pop("patches")
        side = round((weight.shape[1] / 3) ** 0.5)
        out["patch_embed.proj.weight"] = weight.reshape(-1, 3, side, side)
        out["patch_embed.proj.bias"] = weight.new_zeros(len(weight))
    if "tokens" in out:
        tokens = out.pop("tokens")[None]
        out["cls_token"], out["reg_token"] = tokens[:, :1], tokens[:, 1:]
    return out


def _pathoduet(tensors: Tensors, _: nn.Module) -> Tensors:
    """Put the class token before the pretext token, with its row of the position table."""
    out = dict(tensors)
    if "pos_embed" in out and "reg_token" in out:
        table = out["pos_embed"]
        out["pos_embed"] = torch.cat([table[:, 1:2], table[:, :1], table[:, 2:]], dim=1)
    return out


HF: Rules = (
    (r"^(vit|dinov2)\.", ""),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.register_tokens$", "register_tokens"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.attention\.", ".attn."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"^layernorm\.", "norm."),
)
HF_VIT: Rules = (
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
)
# Meta's own: the blocks may be in chunks, each counted from the first block on.
DINOV2: Rules = (
    (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)
HF_DINOV2: Rules = (
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.weights_out\.", ".mlp.fc2."),
)
DINOV3: Rules = (
    (r"^storage_tokens$", "reg_token"),
    (r"\.ls(\d)\.gamma$", r".gamma_\1"),
    (r"\.mlp\.w1\.", ".mlp.fc1_g."),
    (r"\.mlp\.w2\.", ".mlp.fc1_x."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)
MUSK: Rules = (
    (r"^beit3\.(encoder\.)?", ""),
    (r"\.A\.", "."),
    (r"^vision_embed\.cls_token$", "cls_token"),
    (r"^vision_embed\.proj\.", "patch_embed.proj."),
    (r"^embed_positions\.weight$", "positions"),
    (r"^layers\.", "blocks."),
    (r"\.self_attn_layer_norm\.", ".norm1."),
    (r"\.final_layer_norm\.", ".norm2."),
    (r"\.self_attn\.inner_attn_ln\.", ".attn.norm."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
    (r"\.self_attn\.", ".attn."),
    (r"\.ffn\.ffn_layernorm\.", ".mlp.norm."),
    (r"\.ffn\.", ".mlp."),
    (r"^layer_norm\.", "norm."),
)
HF_CLIP: Rules = (
    (r"^vision_model\.embeddings\.class_embedding$", "trunk.cls_token"),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "trunk.pos_embed"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "trunk.patch_embed.proj."),
    (r"^vision_model\.pre_layrnorm\.", "trunk.norm_pre."),
    (r"^vision_model\.post_layernorm\.", "trunk.norm."),
    (r"^vision_model\.encoder\.layers\.", "trunk.blocks."),
    (r"\.layer_norm(\d)\.", r".norm\1."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
    (r"\.self_attn\.", ".attn."),
    (r"^visual_projection\.", "proj."),
)
HF_SIGLIP: Rules = (
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^vision_model\.post_layernorm\.", "norm."),
    (r"^vision_model\.encoder\.layers\.", "blocks."),
    (r"\.layer_norm(\d)\.", r".norm\1."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
    (r"\.self_attn\.", ".attn."),
    (r"^vision_model\.head\.probe$", "attn_pool.latent"),
    (r"^vision_model\.head\.attention\.out_proj\.", "attn_pool.proj."),
    (r"^vision_model\.head\.attention\.", "attn_pool."),
    (r"^vision_model\.head\.layernorm\.", "attn_pool.norm."),
    (r"^vision_model\.head\.mlp\.", "attn_pool.mlp."),
)
OPEN_CLIP: Rules = (
    (r"^visual\.class_embedding$", "trunk.cls_token"),
    (r"^visual\.positional_embedding$", "trunk.pos_embed"),
    (r"^visual\.conv1\.", "trunk.patch_embed.proj."),
    (r"^visual\.ln_pre\.", "trunk.norm_pre."),
    (r"^visual\.transformer\.resblocks\.", "trunk.blocks."),
    (r"\.ln_(\d)\.", r".norm\1."),
    (r"\.attn\.in_proj_", ".attn.qkv."),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"^visual\.proj$", "projection"),
)
RADIO: Rules = (
    (r"^radio_model\.model\.", ""),
    (r"^patch_generator\.embedder\.weight$", "patches"),
    (r"^patch_generator\.pos_embed$", "pos_embed"),
    (r"^patch_generator\.cls_token\.token$", "tokens"),
    (r"\.grandma$", ".gamma"),
)
# Downsampling ended a stage in timm 0.5 and begins the next one now; "!" keeps it from moving on.
SWIN: Rules = (
    (r"^model\.", ""),
    (r"^layers\.0\.downsample\.", "layers.1.downsample!"),
    (r"^layers\.1\.downsample\.", "layers.2.downsample!"),
    (r"^layers\.2\.downsample\.", "layers.3.downsample!"),
    (r"!", "."),
    (r"^", "trunk."),
)

KINDS: dict[str, Keys] = {
    "same": Keys(rename=_without_classifier),
    "order": Keys(unused=r"_fc\.(weight|bias)", rename=_in_order),
    "dinov2": Keys(unused=r"mask_token", rules=DINOV2, rename=_registers_apart, resample=as_timm),
    "dinov3": Keys(
        unused=r"mask_token|rope_embed\.periods|.*\.qkv\.bias_mask|local_cls_norm\..*",
        rules=DINOV3,
        rename=_dinov3,
    ),
    "gpfm": Keys(
        unused=r"(teacher\.backbone\.)?mask_token|teacher\.(dino|ibot)_head\..*",
        rules=((r"^teacher\.backbone\.", ""), *DINOV2),
    ),
    "hf_vit": Keys(unused=r"(vit\.)?pooler\..*", rules=(*HF, *HF_VIT), rename=_hf),
    "hf_dinov2": Keys(
        unused=r"(dinov2\.)?(embeddings\.)?mask_token",
        rules=(*HF, *HF_DINOV2, *DINOV2),
        rename=_hf,
        resample=as_hugging_face,
    ),
    "conch": Keys(
        unused=r"(text|text_decoder|visual\.attn_pool_caption|visual\.ln_caption)\..*"
        r"|logit_scale|visual\.proj_contrast",
        rules=((r"^visual\.", ""),),
        resample=as_conch,
    ),
    "conch15": Keys(resample=as_conch15),
    "ctranspath": Keys(unused=r".*\.(attn_mask|relative_position_index)", rules=SWIN),
    "keep": Keys(
        unused=r"text\..*|logit_scale",
        rules=(
            (r"^visual\.", "trunk."),
            (r"^visual_head\.", "head."),
            (r"\.(ls\d)\.weight$", r".\1.gamma"),
        ),
    ),
    "musk": Keys(
        unused=r".*\.B\..*|beit3\.text_embed\..*|beit3\.vision_embed\.mask_token"
        r"|(language|vision)_head\..*|logit_scale",
        rules=MUSK,
        rename=_musk,
        resample=as_hugging_face,
    ),
    "clip_hf": Keys(
        unused=r"text_model\..*|text_projection\..*|logit_scale|.*\.position_ids",
        rules=HF_CLIP,
        rename=_clip,
        resample=as_hugging_face,
    ),
    "clip_open": Keys(
        unused=r"(?!visual\.).*",
        rules=(*OPEN_CLIP, (r"^visual\.ln_post\.", "trunk.norm.")),
        rename=_clip,
    ),
    "clip_timm": Keys(
        unused=r"(?!visual\.).*",
        rules=((r"^visual\.head\.proj\.", "proj."), (r"^visual\.trunk\.", "trunk.")),
    ),
    "coca": Keys(
        unused=r"(?!(state_dict\.)?(module\.)?visual\.).*",
        rules=(
            (r"^(state_dict\.)?(module\.)?visual\.", "visual."),
            (r"^visual\.attn_pool\.", ""),
            (r"^visual\.(?=ln_post\.)", ""),
            *OPEN_CLIP,
        ),
        rename=_clip,
    ),
    "gemma": Keys(rules=((r"^", "trunk."),)),
    "genbio": Keys(
        unused=r"mask_token|rope_embed\.periods",
        rules=(*DINOV3, (r"^", "trunk.")),
    ),
    "isight": Keys(
        unused=r"(?!model_state_dict\.(patch_encoder\.vision_model|visual_token_projection)\.).*"
        r"|.*\.post_layernorm\..*|.*\.position_ids",
        rules=(
            (r"^model_state_dict\.(patch_encoder\.)?", ""),
            (r"^visual_token_projection\.", "proj."),
            *HF_CLIP,
        ),
        rename=_clip,
    ),
    "mettle": Keys(rules=((r"^backbone\.", "trunk."),)),
    "pathoduet": Keys(
        unused=r"head\..*", rules=((r"^pretext_token$", "reg_token"),), rename=_pathoduet
    ),
    "radio": Keys(
        unused=r"radio_model\.(?!model\.(blocks|patch_generator)\.).*|(?!radio_model\.).*",
        rules=RADIO,
        rename=_radio,
        resample=as_radio,
    ),
    "radio_aligned": Keys(
        unused=r"radio_model\.(?!model\.(blocks|patch_generator)\.).*|(?!radio_model\.).*",
        rules=RADIO,
        rename=_radio,
        resample=as_radio_aligned,
    ),
    "siglip_hf": Keys(
        unused=r"text_model\..*|logit_(scale|bias)|.*\.position_ids",
        rules=HF_SIGLIP,
        rename=_siglip,
        resample=as_hugging_face,
    ),
    "resnet50_layer3": Keys(unused=r"(layer4|fc)\..*"),
}
