"""Every teacher card against the network that is built from it, and against timm's own facts."""

import functools
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import timm
import timm.layers
import torch
from torch import Tensor, nn

from ingest.errors import TeacherError
from ingest.teachers.cards.card import Card, card_from_json, card_json
from ingest.teachers.cards.card_table import CARDS
from ingest.teachers.networks import Plain, build
from ingest.teachers.weights.weight_keys import KINDS
from tests.conftest import ROOT

PAGE = ROOT / "docs" / "teachers.md"
BEGIN, END = "<!-- cards -->\n", "<!-- /cards -->"
ASKED = {
    "uni", "uni2_h", "virchow", "virchow2", "h_optimus_0", "h_optimus_1", "h0_mini", "gigapath",
    "phikon", "phikon_v2", "conch", "conch15", "ctranspath", "hibou_b", "hibou_l", "kaiko_vits16",
    "kaiko_vits8", "kaiko_vitb16", "kaiko_vitb8", "kaiko_vitl14", "midnight12k", "lunit_vits16",
    "lunit_vits8", "gpfm", "musk", "keep", "dinov2_vits14", "dinov2_vitb14", "dinov2_vitl14",
    "dinov2_vitg14", "dinov2_vits14_reg4", "dinov2_vitb14_reg4", "dinov2_vitl14_reg4",
    "dinov2_vitg14_reg4", "dinov3_vits16", "dinov3_vitb16", "dinov3_vitl16", "resnet50",
    "resnet50_layer3", "vit_small_augreg", "vit_base_augreg", "vit_large_augreg",
    "efficientnet_lite0", "efficientnet_lite1", "openmidnight", "mascaret", "phaet", "mettle",
    "genbio_pathfm", "mstar", "pathorchestra", "digepath", "prost40m", "chief_ctranspath",
    "pathoduet_he", "pathoduet_ihc", "plip", "quiltnet_b32", "biomedclip", "omiclip", "medsiglip",
    "isight", "dinobloom_s", "reddino_large", "c_radio_v3_b", "c_radio_v4_h", "gemma4_e4b",
}  # fmt: skip
# Millions, as others published them; the last digit is rounded.
PUBLISHED = {
    "uni": "303.4", "uni2_h": "681.4", "virchow": "631.2", "virchow2": "631.2",
    "phikon": "85.8", "phikon_v2": "303.4", "ctranspath": "27.5", "hibou_b": "85.7",
    "hibou_l": "303.7", "lunit_vits16": "21.7", "lunit_vits8": "21.7", "plip": "87.8",
    "mstar": "303.4", "chief_ctranspath": "27.5",
}  # fmt: skip
GIANTS = ("uni2_h", "virchow2", "h_optimus_0", "gigapath", "midnight12k", "hibou_l")
ALL_BLOCKS = ("virchow2", "gigapath")
NAMES = sorted(CARDS)
TIMMS = [name for name in NAMES if (CARDS[name].hub or "").startswith("timm/")]


def meta(card: Card) -> tuple[nn.Module, Tensor, Tensor]:
    """A card's network at full size, its features and its embedding of one tile, all shapes."""
    return _meta(card.architecture, card.input_px, json.dumps(dict(card.arguments)))


@functools.cache
def _meta(architecture: str, input_px: int, arguments: str) -> tuple[nn.Module, Tensor, Tensor]:
    with torch.device("meta"), torch.inference_mode():
        model = build(architecture, input_px, json.loads(arguments)).eval()
        features = model.forward_features(torch.empty(1, 3, input_px, input_px))  # type: ignore[operator]
        embedding = model.forward_head(features)  # type: ignore[operator]
    return model, features, embedding


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_network_is_what_the_card_says(name: str) -> None:
    card = CARDS[name]
    model, features, embedding = meta(card)
    assert embedding.shape == (1, card.pooled_dim("own"))
    if card.grid is None:
        assert card.prefix_tokens == 0
        assert features.ndim == 4
        return
    height, width = card.grid
    if card.maps:
        assert card.prefix_tokens == 0
        assert features.shape == (1, card.dim, height, width)
        return
    assert features.shape == (1, card.prefix_tokens + height * width, card.dim)
    assert model.num_prefix_tokens == card.prefix_tokens


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_many_as_published(name: str) -> None:
    assert f"{count(meta(CARDS[name])[0]) / 1e6:.1f}" == PUBLISHED[name]


def test_parameters_published_exactly_or_roughly() -> None:
    assert count(meta(CARDS["h0_mini"])[0]) == 85_739_520
    for name in ("h_optimus_0", "h_optimus_1", "gigapath"):
        assert f"{count(meta(CARDS[name])[0]) / 1e9:.2f}" == "1.13"
    # Its file has a table of positions for 518 px, which is resized when it is read.
    table = (37**2 - 16**2) * 1536
    assert f"{(count(meta(CARDS['midnight12k'])[0]) + table) * 4 / 1e9:.2f}" == "4.55"


@pytest.mark.parametrize("name", TIMMS)
def test_failure_6_preprocessing_is_that_of_timm(name: str) -> None:
    card = CARDS[name]
    cfg = timm.get_pretrained_cfg(str(card.hub).removeprefix("timm/"))
    assert (card.mean, card.std) == (cfg.mean, cfg.std)
    assert card.interpolation == cfg.interpolation
    assert card.licence.lower().replace(" ", "-") == cfg.license
    assert cfg.input_size[1] == (518 if name.startswith("dinov2") else card.input_px)
    timms = {"resnet50_layer3": "resnet50", "gemma4": "gemma4_vit_167m_enc"}
    assert cfg.architecture == timms.get(card.architecture, card.architecture)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_preprocessing_of_lite_is_that_of_timm(number: int) -> None:
    card = CARDS[f"efficientnet_lite{number}"]
    cfg = timm.get_pretrained_cfg(card.architecture)
    assert (card.mean, card.std) == (cfg.mean, cfg.std)
    assert (card.input_px, card.interpolation) == (cfg.input_size[1], cfg.interpolation)


@pytest.mark.parametrize("name", NAMES)
def test_card_is_whole(name: str) -> None:
    card = CARDS[name]
    assert card.name == name == name.lower()
    assert card.keys in KINDS
    assert card.hub or card.package or "github.com" in card.source
    assert card.files
    assert card.references
    assert card_from_json(json.loads(card_json(card))) == card
    for pooling in card.poolings:
        assert pooling == "own" or card.grid or pooling == "mean"
        assert "cls" not in pooling or card.prefix_tokens
    assert card.mpps or not card.field_px
    assert card.resize_px is None or card.resize_px > card.input_px
    assert card.patch_px is None or card.input_px % card.patch_px == 0
    assert card.precision == "float32" or "precision" in " ".join(card.references)


def test_all_that_people_use_are_there() -> None:
    assert set(CARDS) >= ASKED


def test_what_is_recommended_comes_first() -> None:
    first = {name: card.poolings[0] for name, card in CARDS.items()}
    dims = {name: CARDS[name].pooled_dim(pooling) for name, pooling in first.items()}
    assert dims["virchow"] == dims["virchow2"] == 2560
    assert dims["midnight12k"] == 3072
    assert dims["h0_mini"] == 1536
    assert (dims["conch"], dims["conch15"], dims["keep"]) == (512, 768, 768)
    assert (dims["resnet50"], dims["resnet50_layer3"]) == (2048, 1024)


def shallow(card: Card) -> Card:
    """The same with one block, where the network is made of equal blocks."""
    if card.patch_px is None:
        return card
    fewer = {"depths": [1, 1, 1, 1]} if card.architecture == "ctranspath" else {"depth": 1}
    return replace(card, arguments={**card.arguments, **fewer})


RUN = ("dinov3_vits16plus", "dinov2_vits14_reg4", "uni2_h", "virchow2", "gigapath", "h0_mini",
       "conch", "conch15", "musk", "keep", "ctranspath", "resnet50_layer3", "lunit_vits8",
       "efficientnet_lite2", "plip", "genbio_pathfm", "c_radio_v3_b")  # fmt: skip


@pytest.mark.parametrize("name", RUN)
def test_network_really_runs(name: str) -> None:
    """The class token of timm's networks is that after the final norm, which they embed by."""
    card = shallow(CARDS[name])
    torch.manual_seed(0)
    model = build(card.architecture, card.input_px, card.arguments).eval()
    x_BCHW = torch.randn(2, 3, card.input_px, card.input_px)
    with torch.inference_mode():
        features = model.forward_features(x_BCHW)  # type: ignore[operator]
        embedding = model.forward_head(features)  # type: ignore[operator]
        assert torch.equal(model(x_BCHW), embedding)
    assert embedding.isfinite().all()
    assert (embedding[0] - embedding[1]).abs().max() > 0
    if card.own_dim is None and card.poolings[0] == "cls":
        assert torch.equal(embedding, features[:, 0])
        if "radio" in card.architecture or card.architecture == "genbio":
            return  # no last norm, or three of them side by side
        torch.testing.assert_close(features.mean(-1), torch.zeros_like(features[..., 0]), atol=1e-4,
                                   rtol=0)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", GIANTS)
def test_giant_runs_at_full_size(name: str) -> None:
    """Run all blocks of two networks, and one block of the others, which are as wide."""
    card = CARDS[name] if name in ALL_BLOCKS else shallow(CARDS[name])
    with torch.device("meta"):
        model = build(card.architecture, card.input_px, card.arguments).eval()
    model.to_empty(device="cpu").to(torch.float32)
    drawn = torch.randn(2**20, generator=torch.Generator().manual_seed(0)) * 0.02
    with torch.inference_mode():
        for parameter in model.parameters():  # the same million again and again: drawing is slow
            for part in torch.split(parameter.view(-1), len(drawn)):
                part.copy_(drawn[: len(part)])
        features = model.forward_features(torch.randn(1, 3, card.input_px, card.input_px))  # type: ignore[operator]
    height, width = card.grid or (0, 0)
    assert features.shape == (1, card.prefix_tokens + height * width, card.dim)
    assert features.isfinite().all()


def test_class_token_after_a_block_is_timms() -> None:
    """Networks of ours hand out their trunk's blocks, as timm's do."""
    card = shallow(CARDS["keep"])
    model = build(card.architecture, card.input_px, card.arguments).eval()
    x_BCHW = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        expected = model.forward_features(x_BCHW)  # type: ignore[operator]
        last, between = model.forward_intermediates(  # type: ignore[operator]
            x_BCHW, indices=[0], norm=True, output_fmt="NLC", return_prefix_tokens=True
        )
    patches, prefix = between[0]
    assert torch.equal(last, expected)
    assert torch.equal(torch.cat([prefix, patches], dim=1), expected)


@pytest.mark.parametrize(
    ("architecture", "px", "same"),
    [
        ("vit_tiny_patch16_224", 96, {"img_size": 96}),
        ("tf_efficientnet_lite0", 96, {}),
        ("resnet18", 64, {}),
        ("swin_tiny_patch4_window7_224", 112, {"img_size": 112}),
    ],
)
def test_timms_network_for_a_size(architecture: str, px: int, same: Mapping[str, Any]) -> None:
    with torch.device("meta"):
        expected = timm.create_model(architecture, num_classes=0, **same)
        ours = build(architecture, px).eval()
        assert ours(torch.zeros(2, 3, px, px)).shape == (2, expected.num_features)
    assert {n: t.shape for n, t in ours.state_dict().items()} == {
        n: t.shape for n, t in expected.state_dict().items()
    }


def test_layers_are_given_by_name() -> None:
    arguments = {"depth": 1, "mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}
    block: Any = build("vit_tiny_patch16_224", 224, arguments).get_submodule("blocks.0.mlp")
    expected = timm.layers.SwiGLUPacked(192, 768, act_layer=nn.SiLU)
    assert type(block) is type(expected)
    assert type(block.act) is nn.SiLU
    # Packed: the first layer is twice as wide as what the second one reads.
    assert block.fc1.out_features == 2 * block.fc2.in_features


@pytest.mark.parametrize(
    ("architecture", "arguments", "message"),
    [
        ("hf-hub:someone/something", {}, "no network 'hf-hub:someone/something'"),
        ("local-dir:/tmp", {}, "no network"),
        ("vit_smal_patch16_224", {}, "did you mean 'vit_small_patch16_224'"),
        ("resnet18", {"pretrained": True}, "can't be given pretrained"),
        ("resnet18", {"checkpoint_path": "/etc/passwd"}, "can't be given checkpoint_path"),
        ("resnet18", {"norm_layer": "system"}, "no layer 'system'"),
        ("resnet18", {"norm_layer": "functional"}, "no layer 'functional'"),
        ("resnet18", {"depths": 3}, "can't be built with"),
    ],
)
def test_what_can_not_be_built_is_refused(
    architecture: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(TeacherError, match=message):
        build(architecture, 224, arguments)


def test_any_network_can_be_put_under_the_protocol() -> None:
    plain = Plain(nn.Flatten(2), 2)
    features = plain.forward_features(torch.ones(1, 3, 4, 4))
    assert features.shape == (1, 3, 16)
    assert torch.equal(plain.forward_head(features), plain(torch.ones(1, 3, 4, 4)))
    assert plain.num_prefix_tokens == 2


@pytest.mark.parametrize("page", ["teachers", "feature-licences"])
def test_table_in_the_docs_is_that_of_the_cards(page: str) -> None:
    """`python -m tests.ingest.teachers.test_cards` writes both."""
    path, begin, end, made = PAGES[page]
    text = path.read_text()
    assert text[text.index(begin) + len(begin) : text.index(end)] == made()


@pytest.mark.parametrize("page", ["README.md", "docs/index.md", "docs/tutorial.md"])
def test_number_of_encoders_in_the_docs_is_that_of_the_cards(page: str) -> None:
    text = (ROOT / page).read_text()
    assert f"{len(CARDS)} encoders" in text or f"lists {len(CARDS)}." in text


def table() -> str:
    """Return all cards as a table in Markdown."""
    head = (
        "| teacher | values per tile | tokens | px | field | µm/px | precision | licence | from |"
    )
    rows = [head, "|---|---|---|---|---|---|---|---|---|"]
    return "\n".join([*rows, *(_row(CARDS[name]) for name in NAMES)]) + "\n"


def _row(card: Card) -> str:
    values = ", ".join(f"{pooling} {card.pooled_dim(pooling)}" for pooling in card.poolings)
    grid = f"{card.prefix_tokens} + {card.grid[0]} x {card.grid[1]}" if card.grid else "–"  # noqa: RUF001
    resized = f", middle of {card.resize_px}" if card.resize_px else ""
    where = card.hub or card.package or card.source
    cells = (
        f"`{card.name}`", values, grid, f"{card.input_px}{resized}",
        " or ".join(map(str, card.field_px)) or "–",  # noqa: RUF001
        ", ".join(f"{mpp:g}" for mpp in card.mpps) or "–",  # noqa: RUF001
        card.precision, card.licence, where + (" (gated)" if card.gated else ""),
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def licence_table() -> str:
    """Return the licences of all cards as a table in Markdown, the most teachers first."""
    by_licence: dict[str, list[str]] = {}
    for name in NAMES:
        by_licence.setdefault(CARDS[name].licence, []).append(name)
    rows = ["| licence, as the card has it | teachers | forbids | in short |", "|---|---|---|---|"]
    for licence, names in sorted(by_licence.items(), key=lambda item: (-len(item[1]), item[0])):
        forbids = {CARDS[name].forbids for name in names}
        assert len(forbids) == 1, f"{licence}: cards differ in what it forbids"
        teachers = ", ".join(f"`{name}`" for name in names)
        forbidden = ", ".join(next(iter(forbids))) or "–"  # noqa: RUF001
        rows.append(f"| {licence} | {teachers} | {forbidden} | {IN_SHORT[licence]} |")
    return "\n".join(rows) + "\n"


IN_SHORT = {
    "Apache-2.0": "free, also commercially, with the notice. `h_optimus_0`, `hibou_l` and "
    "`openmidnight` ask for an account first",
    "Apache-2.0 with terms of its gate": "the gate asks for agreement to more: read it",
    "Apache-2.0, that of its code; the weights' page is unread": "settle it for the weights before "
    "you hand something on",
    "MIT": "free, also commercially, with the notice",
    "BSD-3-Clause": "free, also commercially, with the notice",
    "DINOv3 License": "Meta's own terms: read them",
    "NVIDIA Open Model License": "NVIDIA's own terms, which allow commercial use: read them",
    "Health AI Developer Foundations": "Google's own terms, with uses that it forbids: read them",
    "CC-BY-NC-ND-4.0": "not commercial; adapted weights may not be shared",
    "CC-BY-NC-ND-4.0 with further terms, on models made from it too": "as above; the further terms "
    "speak of models made from it, so of **students** too",
    "CC-BY-NC-4.0": "not commercial",
    "Owkin non-commercial": "not commercial",
    "Kaiko non-commercial": "not commercial",
    "Lunit public licence, non-commercial": "not commercial",
    "Waiv non-commercial, on models trained on its outputs too": "not commercial, and **students** "
    "stand under it",
    "unread; Phikon-v2's, from which it was tuned, is non-commercial": "ask before you use it",
    "unread": "ask before you use it",
    "GenBio AI Community License, non-commercial": "not commercial; its text forbids distillation, "
    "and to train models of its kind on its outputs: `distill` refuses it",
    "Prov-GigaPath licence, for research; its code Apache-2.0": "for research; code and hub's tag "
    "differ, read both",
    "GPL-3.0; its README: for academic research": "a code licence on weights, and a README that "
    "narrows it: ask the authors",
    "AGPL-3.0": "a code licence on weights: ask the authors what it means for features",
    "non-commercial, says LazySlide; its page names none": "ask before you use it",
    "not stated by the weights' package; code Apache-2.0": "unknown for the weights: fine to try "
    "things, settle it before you hand something on",
}
PAGES = {
    "teachers": (PAGE, BEGIN, END, table),
    "feature-licences": (
        ROOT / "docs" / "feature-licences.md", "<!-- licences -->\n", "<!-- /licences -->",
        licence_table,
    ),
}  # fmt: skip


def write_tables() -> None:
    for path, begin, end, made in PAGES.values():
        text = path.read_text()
        before, after = text[: text.index(begin) + len(begin)], text[text.index(end) :]
        path.write_text(before + made() + after)


if __name__ == "__main__":
    write_tables()
