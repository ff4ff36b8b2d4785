"""Cards of pathology encoders of 2024 to 2026: robust ones, and those of one organ or stain.

RudolfV-2 has no card: its network is code of the hub alone, which could not be read.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from ingest.teachers.cards.card import Card
from ingest.teachers.cards.cards_gated import (
    BOTH_FILES,
    FURTHER_TERMS,
    H_OPTIMUS_0,
    LAZYSLIDE,
    NO_DERIVATIVES,
    NO_STUDENTS,
    NOT_SHARED,
    SLIDE2VEC,
    TRIDENT,
    UNI,
)
from ingest.teachers.cards.cards_natural import IMAGENET, SAFETENSORS
from ingest.teachers.cards.cards_open import CTRANSPATH, MIDNIGHT, PHIKON_V2

if TYPE_CHECKING:
    from featurestore import Forbidden

STAMP = "KatherLab/STAMP@c54ce06, preprocessing/extractor"
# The text of the licence: outputs may train "GenBio materials" and their derivatives alone.
NO_TRAINING: "tuple[Forbidden, ...]" = ("commercial use", "training on outputs")
NONE = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

OPENMIDNIGHT = Card(
    name="openmidnight",
    architecture="vit_giant_patch14_reg4_dinov2",
    dim=1536,
    input_px=224,
    mean=IMAGENET[0],
    std=IMAGENET[1],
    interpolation="bilinear",
    poolings=("cls",),
    prefix_tokens=5,
    patch_px=14,
    mpps=(0.5,),
    precision="float16",
    licence="Apache-2.0",
    gated=True,
    source="Sophont and MedARC, a replication of Midnight",
    hub="SophontAI/OpenMidnight",
    files=("teacher_checkpoint_load.pt",),
    keys="dinov2",
    references={
        "network, mean, std, interpolation, precision": TRIDENT,
        "pooling, licence, gate": f"{LAZYSLIDE}, vision/open_midnight.py",
        "position table": f"that of 224 px: {LAZYSLIDE}",
    },
    unverified=("mpp: 20x in the tools", "names in the file: those of Meta's code, says TRIDENT"),
)
MASCARET = replace(
    MIDNIGHT,
    name="mascaret",
    poolings=("cls",),
    mpps=(0.5,),
    precision="float32",
    licence="Waiv non-commercial, on models trained on its outputs too",
    forbids=NO_STUDENTS,
    gated=True,
    source="Waiv, Midnight-12k tuned for robustness",
    hub="wearewaiv/mascaret",
    references={
        "input, patch, length, precision": "clemsgrs/slide2vec 7.1.4, encoders/models/waiv.py",
        "network": "that of midnight12k, from which it was tuned: arXiv 2607.22861",
        "licence": "arXiv 2607.22861",
    },
    unverified=(
        "mean and std: in the hub's config, unread; those of midnight12k here",
        "interpolation", "names in the file", "pooling: 1536 values, so one token", "mpp",
    ),
)  # fmt: skip
PHAET = replace(
    PHIKON_V2,
    name="phaet",
    poolings=("cls",),
    licence="unread; Phikon-v2's, from which it was tuned, is non-commercial",
    gated=True,
    source="Waiv, Phikon-v2 tuned for robustness",
    hub="wearewaiv/phaet",
    references={
        "input, patch, length, precision": "clemsgrs/slide2vec 7.1.4, encoders/models/waiv.py",
        "network": "that of phikon_v2, from which it was tuned",
    },
    unverified=(
        "mean and std: in the hub's config, unread; those of phikon_v2 here",
        "interpolation", "names in the file", "pooling", "mpp", "licence",
    ),
)  # fmt: skip
METTLE = replace(
    H_OPTIMUS_0,
    name="mettle",
    architecture="mettle",
    own_dim=3072,
    poolings=("own",),
    licence=NO_DERIVATIVES,
    forbids=NOT_SHARED,
    gated=False,
    source="slideflow labs, H-optimus-0 and a head for robustness",
    hub="slideflow-labs/Mettle",
    files=SAFETENSORS,
    keys="mettle",
    references={
        "network, pooling, mean, std, names, precision, licence": "clemsgrs/slide2vec 7.1.4, "
        "encoders/models/mettle.py",
        "interpolation": f"that of H-optimus-0: {SLIDE2VEC}",
    },
    unverified=("mpp: not stated; that of H-optimus-0",),
)
GENBIO = Card(
    name="genbio_pathfm",
    architecture="genbio",
    arguments={
        "embed_dim": 1536,
        "depth": 40,
        "num_heads": 24,
        "mlp_ratio": 4 * 2 / 3,
        "swiglu_align_to": 64,
        "norm_layer": "LayerNorm",
    },
    dim=4608,
    input_px=224,
    mean=(0.697, 0.575, 0.728),
    std=(0.188, 0.240, 0.187),
    interpolation="bilinear",
    poolings=("cls", "cls+mean"),
    prefix_tokens=5,
    patch_px=16,
    mpps=(0.5,),
    licence="GenBio AI Community License, non-commercial",
    forbids=NO_TRAINING,
    source="GenBio AI",
    hub="genbio-ai/genbio-pathfm",
    files=("model.pth",),
    keys="genbio",
    references={
        "network, mean, std, pooling, file": "genbio-ai/genbio-pathfm@1d65d00, genbio_pathfm",
        "interpolation": "its README, torchvision's Resize as it is; slide2vec is bicubic",
        "licence": "its LICENSE.txt: 1.2.2 forbids distillation, and models of its kind trained on "
        "outputs",
        "precision": f"{SLIDE2VEC}/genbio.py; {TRIDENT} runs bfloat16",
    },
    unverified=(
        "mpp: that of the tools",
        "its own code turns queries and keys in bfloat16, which timm's network does not",
    ),
)
MSTAR = replace(
    UNI,
    name="mstar",
    precision="float32",
    licence=FURTHER_TERMS,
    source="HKUST SmartLab",
    hub="Wangyh/mSTAR",
    files=BOTH_FILES,
    references={
        "network, mean, std, interpolation, licence": "Innse/mSTAR@178889c, README.md",
        "mpp, precision": f"{SLIDE2VEC}/mstar.py",
    },
    unverified=("names of the files: those of timm's copies on the hub",),
)
PATHORCHESTRA = replace(
    UNI,
    name="pathorchestra",
    precision="float32",
    licence=NO_DERIVATIVES,
    forbids=NOT_SHARED,
    source="AI4Pathology",
    hub="AI4Pathology/PathOrchestra",
    files=BOTH_FILES,
    references={
        "network, mean, std, interpolation": "yanfang-research/PathOrchestra@0109d92, README.md",
        "licence": f"{LAZYSLIDE}, vision/path_orchestra.py",
    },
    unverified=("names of the files", "mpp", "precision"),
)
DIGEPATH = replace(
    UNI,
    name="digepath",
    arguments={},
    precision="float32",
    licence="CC-BY-NC-4.0",
    forbids=("commercial use",),
    gated=False,
    source="Tsinghua and others, github.com/lingxitong/Digepath, stomach and bowel",
    hub=None,
    files=BOTH_FILES,
    references={"length, patch, licence": "mahmoodlab/TRIDENT, pull request 236"},
    unverified=(
        "network: a plain ViT-L/16; other weights are refused", "mean and std", "interpolation",
        "pooling", "mpp", "precision", "names of the files",
    ),
)  # fmt: skip
PROST40M = Card(
    name="prost40m",
    architecture="vit_small_patch14_dinov2",
    dim=384,
    input_px=224,
    mean=IMAGENET[0],
    std=IMAGENET[1],
    poolings=("cls",),
    prefix_tokens=1,
    patch_px=14,
    mpps=(0.5,),
    licence="unread",
    source="Clément Grisi, prostate",
    hub="waticlems/Prost40M",
    files=SAFETENSORS,
    keys="dinov2",
    references={"length, patch, mpp, precision": f"{SLIDE2VEC}/prost40m.py"},
    unverified=(
        "network: in the hub's config, unread; other weights are refused", "mean and std",
        "interpolation", "licence", "name of the file",
    ),
)  # fmt: skip
CHIEF = replace(
    CTRANSPATH,
    name="chief_ctranspath",
    licence="AGPL-3.0",
    forbids=(),
    source="CHIEF's tile encoder, CHIEF_CTransPath.pth by github.com/hms-dbmi/CHIEF",
    files=("CHIEF_CTransPath.pth", "chief_ctranspath.pth"),
    references={
        "network, mean, std, interpolation, names": f"{STAMP}/chief_ctranspath.py",
        "licence": f"{LAZYSLIDE}, vision/chief.py",
        "mpp": "256 px at 10x: LazySlide and slide2vec",
        "precision": TRIDENT,
    },
    unverified=("name of the file",),
)


def _pathoduet(stain: str) -> Card:
    return Card(
        name=f"pathoduet_{stain}",
        architecture="vit_base_patch16_224",
        arguments={"reg_tokens": 1, "global_pool": "avg"},
        dim=768,
        input_px=224,
        mean=NONE[0],
        std=NONE[1],
        prefix_tokens=2,
        patch_px=16,
        licence="CC-BY-NC-4.0",
        forbids=("commercial use",),
        source=f"Shanghai AI Laboratory, {stain.upper()}, by github.com/openmedlab/PathoDuet",
        files=(f"checkpoint_{stain.upper()}.pth",),
        keys="pathoduet",
        references={
            "network, pooling": "openmedlab/PathoDuet@2f65c15, vits.py",
            "mean, std, licence": "its README: no normalisation",
        },
        unverified=(
            "mpp", "interpolation", "precision", "name of the file",
            "names in the file: one without fc_norm is refused",
        ),
    )  # fmt: skip


def recent() -> Iterator[Card]:
    """Yield the cards of recent pathology encoders."""
    yield from (OPENMIDNIGHT, MASCARET, PHAET, METTLE, GENBIO, MSTAR, PATHORCHESTRA, DIGEPATH)
    yield from (PROST40M, CHIEF, _pathoduet("he"), _pathoduet("ihc"))
