"""Cards of pathology encoders whose weights require a licence to be accepted first."""

from typing import TYPE_CHECKING

from ingest.teachers.cards.card import Card
from ingest.teachers.cards.cards_natural import IMAGENET

if TYPE_CHECKING:
    from featurestore import Forbidden

TRIDENT = "mahmoodlab/TRIDENT@a91fa84, patch_encoder_models/load.py"
TRIDENT_TABLE = "mahmoodlab/TRIDENT@a91fa84, table in README.md"
SLIDE2VEC = "clemsgrs/slide2vec@7cfa6bf, encoders/models"
LAZYSLIDE = "rendeirolab/lazyslide-models@0127beb"
SWIGLU = {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}
BOTH_FILES = ("model.safetensors", "pytorch_model.bin")
NO_DERIVATIVES = "CC-BY-NC-ND-4.0"
FURTHER_TERMS = f"{NO_DERIVATIVES} with further terms, on models made from it too"
NOT_SHARED: "tuple[Forbidden, ...]" = ("commercial use", "sharing derivatives")
# "... and its derivatives, which include models trained on outputs": students are under it, too
NO_STUDENTS: "tuple[Forbidden, ...]" = (*NOT_SHARED, "sharing students")
OPTIMUS = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))

UNI = Card(
    name="uni",
    architecture="vit_large_patch16_224",
    arguments={"init_values": 1e-5},
    dim=1024,
    input_px=224,
    mean=IMAGENET[0],
    std=IMAGENET[1],
    interpolation="bilinear",
    poolings=("cls",),
    prefix_tokens=1,
    patch_px=16,
    mpps=(0.5,),
    field_px=(256,),
    precision="float16",
    licence=FURTHER_TERMS,
    forbids=NO_STUDENTS,
    gated=True,
    source="Mahmood Lab",
    hub="MahmoodLab/UNI",
    files=("pytorch_model.bin", "model.safetensors"),
    references={
        "network, mean, std": "mahmoodlab/UNI@42715ef, uni/get_encoder/get_encoder.py",
        "interpolation": "mahmoodlab/UNI README, torchvision's Resize(224) as it is",
        "mpp, field": TRIDENT_TABLE,
        "precision": TRIDENT,
        "licence": "mahmoodlab/UNI LICENSE; page of the hub",
    },
    unverified=("interpolation in the hub's config.json", "that model.safetensors exists"),
)
UNI2_H = Card(
    name="uni2_h",
    architecture="vit_giant_patch14_224",
    arguments={
        "depth": 24,
        "num_heads": 24,
        "embed_dim": 1536,
        "mlp_ratio": 5.33334,
        "init_values": 1e-5,
        "no_embed_class": True,
        "reg_tokens": 8,
        **SWIGLU,
    },
    dim=1536,
    input_px=224,
    mean=IMAGENET[0],
    std=IMAGENET[1],
    interpolation="bilinear",
    poolings=("cls",),
    prefix_tokens=9,
    patch_px=14,
    mpps=(0.5,),
    field_px=(256,),
    precision="bfloat16",
    licence=FURTHER_TERMS,
    forbids=NO_STUDENTS,
    gated=True,
    source="Mahmood Lab",
    hub="MahmoodLab/UNI2-h",
    files=("pytorch_model.bin", "model.safetensors"),
    references={
        "network, mean, std": "mahmoodlab/UNI README and uni/get_encoder/get_encoder.py",
        "interpolation": "mahmoodlab/UNI README, second recipe",
        "mpp, field": f"{TRIDENT_TABLE}; hub, MahmoodLab/UNI2-h-features",
        "precision": f"{TRIDENT}; {SLIDE2VEC}/uni.py says float16",
        "licence": "page of the hub",
    },
    unverified=("interpolation in the hub's config.json", "that model.safetensors exists"),
)


def _virchow(name: str, hub: str, registers: int, mpps: tuple[float, ...], licence: str) -> Card:
    reg = {"reg_tokens": registers} if registers else {}
    return Card(
        name=name,
        architecture="vit_huge_patch14_224",
        arguments={"init_values": 1e-5, "mlp_ratio": 5.3375, **reg, **SWIGLU},
        dim=1280,
        input_px=224,
        mean=IMAGENET[0],
        std=IMAGENET[1],
        poolings=("cls+mean", "cls"),
        prefix_tokens=1 + registers,
        patch_px=14,
        mpps=mpps,
        field_px=(224,),
        precision="float16",
        licence=licence,
        forbids=NOT_SHARED if licence == NO_DERIVATIVES else (),
        gated=True,
        source="Paige",
        hub=hub,
        files=BOTH_FILES,
        references={
            "network, mean, std": f"{TRIDENT}, loads it strictly",
            "pooling": f"{TRIDENT}; birkhoffkiki/PrePATH models/{name}.py",
            "mpp, field": f"{SLIDE2VEC}/virchow.py; 0.5 first by {TRIDENT_TABLE}",
            "precision": TRIDENT,
            "licence": "page of the hub",
        },
        unverified=(
            "name of the .safetensors file",
            "the card's own words on pooling; STAMP takes the class token alone",
            *(("positions of the registers: follow from the strict load",) if registers else ()),
        ),
    )


VIRCHOW = _virchow("virchow", "paige-ai/Virchow", 0, (0.5,), "Apache-2.0 with terms of its gate")
VIRCHOW2 = _virchow("virchow2", "paige-ai/Virchow2", 4, (0.5, 0.25, 1.0, 2.0), NO_DERIVATIVES)


def _optimus(number: int, files: tuple[str, ...], licence: str, *unverified: str) -> Card:
    return Card(
        name=f"h_optimus_{number}",
        architecture="vit_giant_patch14_reg4_dinov2",
        dim=1536,
        input_px=224,
        mean=OPTIMUS[0],
        std=OPTIMUS[1],
        poolings=("cls",),
        prefix_tokens=5,
        patch_px=14,
        mpps=(0.5,),
        field_px=(224,),
        precision="float16",
        licence=licence,
        forbids=NOT_SHARED if licence == NO_DERIVATIVES else (),
        gated=True,
        source="Bioptimus",
        hub=f"bioptimus/H-optimus-{number}",
        files=files,
        references={
            "network, mean, std": f"{TRIDENT}, loads it strictly",
            "size": "bioptimus/releases@218eb7e, models/h-optimus/v0/README.md",
            "interpolation": f"{SLIDE2VEC}; the card feeds tiles of 224 px",
            "mpp, field": TRIDENT_TABLE,
            "precision": f"{TRIDENT}; float16 autocast in the card",
        },
        unverified=(
            "interpolation: bicubic in slide2vec, LazySlide, PrePATH; bilinear in TRIDENT, STAMP",
            *unverified,
        ),
    )


H_OPTIMUS_0 = _optimus(
    0, ("pytorch_model.bin", "model.safetensors"), "Apache-2.0", "whether it is gated now"
)
H_OPTIMUS_1 = _optimus(
    1, ("model.safetensors",), NO_DERIVATIVES, f"licence: read in {LAZYSLIDE} alone", "file name"
)
H0_MINI = Card(
    name="h0_mini",
    architecture="vit_base_patch14_reg4_dinov2",
    arguments={"mlp_ratio": 5.33334, **SWIGLU},
    dim=768,
    input_px=224,
    mean=OPTIMUS[0],
    std=OPTIMUS[1],
    poolings=("cls+mean", "cls"),
    prefix_tokens=5,
    patch_px=14,
    mpps=(0.5,),
    field_px=(224,),
    precision="float16",
    licence=NO_DERIVATIVES,
    forbids=NOT_SHARED,
    gated=True,
    source="Bioptimus",
    hub="bioptimus/H0-mini",
    files=BOTH_FILES,
    references={
        "network": "third-party code that loads it strictly; 85,739,520 parameters there as here",
        "mean, std": "owkin/plism-benchmark@b4f32b7, models/bioptimus.py",
        "pooling": f"a copy of the card ends with 1536 values; {SLIDE2VEC}/hoptimus.py",
        "mpp, field": TRIDENT_TABLE,
        "precision": TRIDENT,
    },
    unverified=(
        "pooling: the class token alone in TRIDENT and PLISM",
        f"licence: read in {LAZYSLIDE} alone",
    ),
)
GIGAPATH = Card(
    name="gigapath",
    architecture="vit_giant_patch14_dinov2",
    arguments={"patch_size": 16},
    dim=1536,
    input_px=224,
    resize_px=256,
    mean=IMAGENET[0],
    std=IMAGENET[1],
    poolings=("cls",),
    prefix_tokens=1,
    patch_px=16,
    mpps=(0.5,),
    field_px=(256,),
    precision="float16",
    licence="Prov-GigaPath licence, for research; its code Apache-2.0",
    forbids=("commercial use",),
    gated=True,
    source="Providence and Microsoft",
    hub="prov-gigapath/prov-gigapath",
    files=("pytorch_model.bin",),
    references={
        "network": f"{TRIDENT}, loads it strictly",
        "patch of 16 px": f"{SLIDE2VEC}/gigapath.py and its test against the weights",
        "resize": "prov-gigapath/prov-gigapath@09d8e87, README and gigapath/pipeline.py",
        "mpp": "prov-gigapath/prov-gigapath@09d8e87, demo/1_slide_mpp_check.py",
        "field": TRIDENT_TABLE,
        "precision": f"{TRIDENT}; gigapath/pipeline.py",
    },
    unverified=("licence: the code's says Apache-2.0, the hub's tag its own", "HEST runs float32"),
)

GATED = (UNI, UNI2_H, VIRCHOW, VIRCHOW2, H_OPTIMUS_0, H_OPTIMUS_1, H0_MINI, GIGAPATH)
