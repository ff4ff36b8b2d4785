"""Cards of pathology encoders whose weights need no permission; most are not for commerce.

Hibou-L requires acceptance; it is listed beside Hibou-B.
"""

from collections.abc import Iterator

from ingest.teachers.cards.card import Card
from ingest.teachers.cards.cards_gated import BOTH_FILES, SLIDE2VEC, SWIGLU, TRIDENT, TRIDENT_TABLE
from ingest.teachers.cards.cards_natural import HALF, IMAGENET, SAFETENSORS

HF_DINOV2 = "huggingface/transformers@015e687, modeling_dinov2.py"
HIBOU = ((0.7068, 0.5755, 0.722), (0.195, 0.2316, 0.1816))
LUNIT = ((0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464))

PHIKON = Card(
    name="phikon",
    architecture="vit_base_patch16_224",
    dim=768,
    input_px=224,
    mean=IMAGENET[0],
    std=IMAGENET[1],
    interpolation="bilinear",
    poolings=("cls",),
    prefix_tokens=1,
    patch_px=16,
    mpps=(0.5,),
    field_px=(224,),
    licence="Owkin non-commercial",
    forbids=("commercial use",),
    source="Owkin, the teacher of its iBOT",
    hub="owkin/phikon",
    files=BOTH_FILES,
    keys="hf_vit",
    references={
        "network, pooling, mpp, field": "owkin/HistoSSLscaling@73f1d19, README.md",
        "epsilon of the norms": "config.json of the hub, 1e-6; an older revision had 1e-12",
        "interpolation": "birkhoffkiki/PrePATH models/phikon.py, compared with the processor",
        "mean, std, precision": TRIDENT,
        "licence": "owkin/HistoSSLscaling LICENSE.txt",
        "names": "huggingface/transformers@005db82, modeling_vit.py",
    },
    unverified=("names in the file itself",),
)
PHIKON_V2 = Card(
    name="phikon_v2",
    architecture="vit_large_patch16_224",
    arguments={"init_values": 1e-5},
    dim=1024,
    input_px=224,
    mean=IMAGENET[0],
    std=IMAGENET[1],
    poolings=("cls", "cls+mean"),
    prefix_tokens=1,
    patch_px=16,
    mpps=(0.5,),
    field_px=(224,),
    licence="Owkin non-commercial",
    forbids=("commercial use",),
    source="Owkin",
    hub="owkin/phikon-v2",
    files=SAFETENSORS,
    keys="hf_dinov2",
    references={
        "network": "303.4 million parameters and third-party code: 24 blocks, plain MLP",
        "interpolation, mean, std": "the hub's processor, in birkhoffkiki/PrePATH phikon2.py",
        "pooling": f"{SLIDE2VEC}/phikon.py; cls+mean in PathoROB",
        "mpp, field": TRIDENT_TABLE,
        "precision": TRIDENT,
        "names": HF_DINOV2,
    },
    unverified=("config.json of the hub", "interpolation: TRIDENT resizes bilinearly"),
)


def _hibou(name: str, size: str, dim: int, ratio: float, hub: str) -> Card:
    large = size == "large"
    return Card(
        name=name,
        architecture=f"vit_{size}_patch14_reg4_dinov2",
        arguments={"mlp_ratio": ratio, **SWIGLU},
        dim=dim,
        input_px=224,
        mean=HIBOU[0],
        std=HIBOU[1],
        poolings=("cls",),
        prefix_tokens=5,
        patch_px=14,
        mpps=(0.5,),
        field_px=(224,),
        precision="float32" if large else "float16",
        licence="Apache-2.0",
        gated=large,
        source="HistAI",
        hub=hub,
        files=SAFETENSORS,
        keys="hf_dinov2",
        references={
            "network": "HistAI/hibou@c453bbe, hibou/models; config.json of hibou-b",
            "mean, std": f"{SLIDE2VEC}/hibou.py; TRIDENT, utils/constants.py",
            "interpolation": "birkhoffkiki/PrePATH models/hibou_l.py",
            "pooling": f"pooler_output, the normed class token: {SLIDE2VEC}/hibou.py",
            "precision": TRIDENT if large else f"{SLIDE2VEC}/hibou.py",
            **({"mpp, field": TRIDENT_TABLE} if large else {}),
            "licence": "HistAI/hibou LICENSE",
        },
        unverified=(
            "config.json: its size follows from 303,657,216 parameters; slide2vec runs float16"
            if large
            else "whether it is gated now: open in 2024, LazySlide says it is",
            *(() if large else ("mpp, field: as of hibou_l",)),
        ),
    )


def _kaiko(letter: str, size: str, patch: int, dim: int) -> Card:
    large = letter == "l"
    plain, hub = f"vit_{size}_patch{patch}_224", f"vit_{size}_patch{patch}_reg4_224"
    return Card(
        name=f"kaiko_vit{letter}{patch}",
        architecture="vit_large_patch14_reg4_dinov2" if large else plain,
        dim=dim,
        input_px=224,
        mean=HALF[0],
        std=HALF[1],
        interpolation="bilinear",
        poolings=("cls",),
        prefix_tokens=5 if large else 1,
        patch_px=patch,
        mpps=(0.5,),
        field_px=(256,),
        licence="Kaiko non-commercial",
        forbids=("commercial use",),
        source="kaiko.ai",
        hub=f"1aurent/{hub if large else plain}.kaiko_ai_towards_large_pathology_fms",
        files=SAFETENSORS,
        keys="dinov2" if large else "same",
        references={
            "network": f"kaiko-ai/towards_large_pathology_fms@bfcde17, hubconf.py; {TRIDENT}",
            "mean, std, interpolation": "kaiko-ai/towards_large_pathology_fms README.md",
            "mpp, field": TRIDENT_TABLE,
            "precision": TRIDENT,
            "licence": "kaiko-ai/towards_large_pathology_fms LICENSE",
        },
        unverified=("other resolutions that it was trained at",),
    )


MIDNIGHT = Card(
    name="midnight12k",
    architecture="vit_giant_patch14_dinov2",
    dim=1536,
    input_px=224,
    mean=HALF[0],
    std=HALF[1],
    interpolation="bilinear",
    poolings=("cls+mean", "cls"),
    prefix_tokens=1,
    patch_px=14,
    mpps=(0.5, 0.25, 1.0, 2.0),
    field_px=(224,),
    precision="float16",
    licence="MIT",
    source="kaiko.ai",
    hub="kaiko-ai/midnight",
    files=SAFETENSORS,
    keys="hf_dinov2",
    references={
        "input, mean, std, interpolation, licence": "page of the hub",
        "pooling": "page of the hub, for classification; TRIDENT takes the class token",
        "network": f"{SLIDE2VEC}/midnight.py; {TRIDENT}",
        "position table": f"37 x 37, resized as {HF_DINOV2} does",
        "mpp, field": f"{SLIDE2VEC}/midnight.py; 0.5 first by {TRIDENT_TABLE}",
        "precision": TRIDENT,
    },
    unverified=(
        "size of the position table: follows from the file's 4.55 GB",
        "whether it is gated: LazySlide says it is",
    ),
)


def _lunit(patch: int) -> Card:
    architecture = f"vit_small_patch{patch}_224"
    file = f"dino_vit_small_patch{patch}_ep200.torch"
    return Card(
        name=f"lunit_vits{patch}",
        architecture=architecture,
        dim=384,
        input_px=224,
        mean=LUNIT[0],
        std=LUNIT[1],
        poolings=("cls",),
        prefix_tokens=1,
        patch_px=patch,
        mpps=(0.5,),
        field_px=(224,),
        licence="Lunit public licence, non-commercial",
        forbids=("commercial use",),
        source="Lunit, DINO on TCGA",
        hub=f"1aurent/{architecture}.lunit_dino",
        files=(*SAFETENSORS, file),
        references={
            "network, licence": "lunit-io/benchmark-ssl-pathology@d0288de, README.md and LICENSE",
            "mean, std": "kaiko-ai/eva@73b61a7, pathology/lunit.py; owkin/plism-benchmark",
            **({"mpp, field": TRIDENT_TABLE} if patch == 8 else {}),
            "resize": "owkin/plism-benchmark, models/lunit.py: none",
            "precision": TRIDENT if patch == 8 else f"{SLIDE2VEC}/lunit.py",
        },
        unverified=(
            "interpolation",
            "mean and std: PrePATH takes those of ImageNet",
            "crop: timm's default for the hub's copy would cut off a tenth",
            *(() if patch == 8 else ("mpp, field",)),
        ),
    )


GPFM = Card(
    name="gpfm",
    architecture="vit_large_patch14_dinov2",
    dim=1024,
    input_px=224,
    mean=IMAGENET[0],
    std=IMAGENET[1],
    poolings=("cls",),
    prefix_tokens=1,
    patch_px=14,
    mpps=(0.5,),
    field_px=(224,),
    precision="float16",
    licence="CC-BY-NC-ND-4.0",
    forbids=("commercial use", "sharing derivatives"),
    source="HKUST SmartLab",
    hub="majiabo/GPFM",
    files=("GPFM.pth",),
    keys="gpfm",
    references={
        "network, interpolation": "birkhoffkiki/GPFM@4f8be2b, models/dinov2/__init__.py",
        "mpp, field": f"{TRIDENT_TABLE}; {SLIDE2VEC}/gpfm.py",
        "names": f"hub: {TRIDENT}, loads it strictly; GitHub: kaiko-ai/eva@73b61a7, hkust.py",
        "precision": f"{TRIDENT}; {SLIDE2VEC} runs float32",
        "licence": "birkhoffkiki/GPFM LICENSE",
    },
    unverified=(
        "mpp: its README prefers tiles of 512 px at 0.25, 0.57 as it is fed",
        "licence: the hub's page has said CC-BY-NC-4.0",
    ),
)
CTRANSPATH = Card(
    name="ctranspath",
    architecture="ctranspath",
    dim=768,
    input_px=224,
    mean=IMAGENET[0],
    std=IMAGENET[1],
    interpolation="bilinear",
    poolings=("mean",),
    patch_px=32,
    mpps=(1.0,),
    field_px=(224,),
    licence="GPL-3.0; its README: for academic research",
    forbids=("commercial use",),
    source="Xiyue Wang, ctranspath.pth in github.com/Xiyue-Wang/TransPath",
    files=("ctranspath.pth",),
    keys="ctranspath",
    references={
        "network, mean, std, mpp": "Xiyue-Wang/TransPath@26c6194, ctran.py and README.md",
        "interpolation": "get_features_CTransPath.py there, torchvision's Resize as it is",
        "equality": "STAMP's network of timm 0.5.4, difference 0.0 on random weights",
        "precision": TRIDENT,
    },
    unverified=(
        "TRIDENT's `ctranspath` is another file, CHIEF's: AGPL-3.0, 256 px",
        "field: the side of the network's input",
    ),
)


def open_cards() -> Iterator[Card]:
    """Yield the cards of pathology encoders with open weights."""
    yield from (PHIKON, PHIKON_V2, MIDNIGHT, GPFM, CTRANSPATH)
    yield _hibou("hibou_b", "base", 768, 5.33334, "histai/hibou-b")
    yield _hibou("hibou_l", "large", 1024, 5.34375, "histai/hibou-L")
    for letter, size, patch, dim in (
        ("s", "small", 16, 384), ("s", "small", 8, 384), ("b", "base", 16, 768),
        ("b", "base", 8, 768), ("l", "large", 14, 1024),
    ):  # fmt: skip
        yield _kaiko(letter, size, patch, dim)
    yield from (_lunit(16), _lunit(8))
