"""Cards of encoders that were trained with captions: CLIPs of medicine, and a tower of Gemma 4."""

from collections.abc import Iterator

from ingest.teachers.cards.card import Card
from ingest.teachers.cards.cards_gated import BOTH_FILES, LAZYSLIDE, SLIDE2VEC, TRIDENT
from ingest.teachers.cards.cards_natural import HALF, OPENAI, SAFETENSORS
from ingest.teachers.cards.cards_recent import STAMP

OPEN_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
PATCHES = {"patch32": 32, "patch16": 16, "patch14": 14}


def _clip(name: str, trunk: str, **facts: object) -> Card:
    """Return the card of a CLIP of 224 px whose embedding has 512 values."""
    card = {
        "name": name,
        "architecture": "clip",
        "arguments": {"trunk": trunk, "projection": 512},
        "dim": 768,
        "own_dim": 512,
        "input_px": 224,
        "mean": OPENAI[0],
        "std": OPENAI[1],
        "poolings": ("own", "cls"),
        "prefix_tokens": 1,
        "patch_px": next(px for words, px in PATCHES.items() if words in trunk),
    }
    return Card(**{**card, **facts})  # type: ignore[arg-type]


PLIP = _clip(
    "plip",
    "vit_base_patch32_clip_quickgelu_224",
    mpps=(0.5,),
    licence="non-commercial, says LazySlide; its page names none",
    forbids=("commercial use",),
    source="Stanford, pictures of Twitter",
    hub="vinid/plip",
    files=BOTH_FILES,
    keys="clip_hf",
    references={
        "network, mean, std": f"{STAMP}/plip.py: transformers' CLIPModel, get_image_features",
        "activation": "quick GELU, that of OpenAI's CLIP ViT-B/32, from which it was tuned",
        "licence": f"{LAZYSLIDE}, multimodal/plip.py",
        "interpolation": "CLIPProcessor of transformers",
    },
    unverified=("config.json of the hub", "mpp: pictures of unknown magnification", "precision"),
)


def _quiltnet(size: str, trunk: str, keys: str, *unverified: str) -> Card:
    return _clip(
        f"quiltnet_{size.lower().replace('-', '')}",
        trunk,
        licence="MIT",
        source="University of Washington, Quilt-1M",
        hub=f"wisdomik/QuiltNet-{size}",
        files=OPEN_FILES,
        keys=keys,
        references={
            "network": "open_clip 3.3.0, by the name of the repository on the hub",
            "mean, std, interpolation, licence": f"{LAZYSLIDE}, multimodal/quiltnet.py",
        },
        unverified=("open_clip_config.json of the hub", "mpp", "precision", *unverified),
    )


BIOMEDCLIP = _clip(
    "biomedclip",
    "vit_base_patch16_224",
    licence="MIT",
    source="Microsoft, figures of PubMed Central",
    hub="microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
    files=OPEN_FILES,
    keys="clip_timm",
    references={
        "network": "its name; timm_model.py of open_clip 3.3.0: class token and a linear layer",
        "licence": f"{LAZYSLIDE}, multimodal/biomedclip.py",
    },
    unverified=("open_clip_config.json of the hub", "mean and std", "mpp", "precision"),
)
OMICLIP = Card(
    name="omiclip",
    architecture="coca",
    arguments={"trunk": "vit_large_patch14_clip_224", "projection": 768},
    dim=1024,
    own_dim=768,
    input_px=224,
    mean=OPENAI[0],
    std=OPENAI[1],
    prefix_tokens=1,
    patch_px=14,
    licence="BSD-3-Clause",
    gated=True,
    source="Guangyu Wang's lab, histology and gene expression",
    hub="WangGuangyuLab/Loki",
    files=("checkpoint.pt",),
    keys="coca",
    references={
        "network, licence": f"{LAZYSLIDE}, multimodal/omiclip.py: open_clip's coca_ViT-L-14",
        "mean, std": "open_clip 3.3.0, constants.py",
        "length 1": "open_clip 3.3.0, coca_model.py: encode_image normalises",
    },
    unverified=("names in the file", "mpp", "precision"),
)
MEDSIGLIP = Card(
    name="medsiglip",
    architecture="vit_so400m_patch14_siglip_384",
    arguments={"act_layer": "GELUTanh"},
    dim=1152,
    input_px=448,
    mean=HALF[0],
    std=HALF[1],
    interpolation="bilinear",
    poolings=("own", "mean"),
    patch_px=14,
    licence="Health AI Developer Foundations",
    gated=True,
    source="Google, medical pictures",
    hub="google/medsiglip-448",
    files=SAFETENSORS,
    keys="siglip_hf",
    references={
        "network, pooling": f"{LAZYSLIDE}, multimodal/medsiglip.py: pooler_output of transformers",
        "activation": "SiglipVisionConfig of transformers; timm's own is the exact GELU",
        "mean, std": "image processor of transformers' SigLIP",
        "licence": f"{LAZYSLIDE}, multimodal/medsiglip.py",
    },
    unverified=(
        "config.json of the hub: so400m, by its 878 million parameters", "interpolation", "mpp",
        "precision", "what its terms forbid: read them",
    ),
)  # fmt: skip
ISIGHT = Card(
    name="isight",
    architecture="isight",
    dim=1024,
    input_px=336,
    mean=OPENAI[0],
    std=OPENAI[1],
    poolings=("own", "cls"),
    prefix_tokens=1,
    patch_px=14,
    mpps=(0.5,),
    precision="float16",
    licence="unread",
    source="Nirschl lab, immunohistochemistry of the Human Protein Atlas",
    hub="nirschl-lab/iSight",
    files=("checkpoints/iSight_model_checkpoint.pth",),
    keys="isight",
    references={
        "network, pooling, names, mean, std, precision": f"{SLIDE2VEC}/isight.py, bitwise equal to "
        "zhihuanglab/iSight there",
        "mpp": f"{SLIDE2VEC}/isight.py: inferred from the atlas' 20x",
    },
    unverified=("licence",),
)


GEMMA4 = Card(
    name="gemma4_e4b",
    architecture="gemma4",
    dim=768,
    input_px=768,
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    poolings=("own",),
    patch_px=16,
    precision="bfloat16",
    licence="Apache-2.0",
    source="Google, the vision tower of Gemma 4 E4B, of photographs",
    hub="timm/gemma4_vit_167m_enc.gemma4_e4b_it",
    files=SAFETENSORS,
    keys="gemma",
    references={
        "network, mean, std, input, licence": "timm 1.0.31, gemma4_vit.py",
        "pooling, precision": f"{TRIDENT}: the mean of 256 soft tokens, so 768 px",
    },
    unverified=("interpolation: the processor's own", "name of the file"),
)


def clips() -> Iterator[Card]:
    """Yield the cards of encoders that were trained with captions."""
    yield PLIP
    yield _quiltnet("B-32", "vit_base_patch32_clip_quickgelu_224", "clip_open", "quick GELU")
    yield _quiltnet("B-16", "vit_base_patch16_clip_quickgelu_224", "clip_open", "quick GELU")
    yield _quiltnet("B-16-PMB", "vit_base_patch16_224", "clip_timm")
    yield from (BIOMEDCLIP, OMICLIP, MEDSIGLIP, ISIGHT, GEMMA4)
