"""All cards of slide encoders, by name."""

from ingest.slide_encoders.slide_card import SlideCard

NETWORKS = "ingest.slide_encoders.networks"
BASELINE = "none: it is computed from the column"

BASELINES = (
    SlideCard(
        name="mean",
        loader=f"{NETWORKS}.pooling:build_mean",
        units=("slide", "patient", "section"),
        licence="that of the column",
        source=BASELINE,
    ),
    SlideCard(
        name="max",
        loader=f"{NETWORKS}.pooling:build_maximum",
        units=("slide", "patient", "section"),
        licence="that of the column",
        source=BASELINE,
    ),
    SlideCard(
        name="pca",
        loader=f"{NETWORKS}.pooling:build_components",
        arguments={"components": 256},
        units=("slide", "patient", "section"),
        needs_stats=True,
        licence="that of the column",
        source=BASELINE,
    ),
)

_GIGAPATH_ARGUMENTS = {"input_dim": 1536, "dim": 768, "depth": 12, "heads": 16, "grid": 1000}


def _gigapath(name: str, layer: int, why: str) -> SlideCard:
    """Return a card of GigaPath's slide encoder, of one of its layers."""
    return SlideCard(
        name=name,
        loader=f"{NETWORKS}.gigapath:build_gigapath",
        arguments={**_GIGAPATH_ARGUMENTS, "layer": layer},
        inputs=("gigapath",),
        input_dim=1536,
        dim=768,
        tile_px=256,
        mpp=0.5,
        places="cells",
        has_weights=True,
        # the file holds the tensors under `model`, and a norm that only LongNet's own output uses
        keys=((r"^model\.", ""),),
        unused=r"(model\.)?(pos_embed|decoder.*|mask_token)",
        files=("slide_encoder.safetensors", "slide_encoder.pth"),
        hub="prov-gigapath/prov-gigapath",
        licence="Apache-2.0 with conditions: research use",
        forbids=("commercial use",),
        gated=True,
        source="Hugging Face hub, slide_encoder.pth",
        references={
            "network": "prov-gigapath gigapath/slide_encoder.py; torchscale LongNet",
            "places": "one cell per tile, as TRIDENT's tile_size = patch_size_level0",
            "output": why,
        },
        unverified=("the names of tensors in slide_encoder.pth, which is not public",),
    )


PUBLISHED = (
    _gigapath("gigapath_slide", 12, "mean of the tiles' tokens after the last layer"),
    _gigapath("gigapath_slide_l11", 11, "after layer 11, as TRIDENT and the authors' tasks take"),
    SlideCard(
        name="titan",
        loader=f"{NETWORKS}.titan:build_titan",
        arguments={"dim": 768, "depth": 6, "heads": 12, "mlp_ratio": 4.0, "pool_heads": 8},
        inputs=("conch15",),
        input_dim=768,
        dim=768,
        tile_px=512,
        mpp=0.5,
        places="cells from the first tile",
        has_weights=True,
        keys=((r"^vision_encoder\.", ""),),
        unused=(
            r"(text_encoder|text_decoder|multimodal_decoder|logit_scale|conch).*"
            r"|(vision_encoder\.)?(attn_pool\..*|proj|masked_embed|fc_norm.*|head.*)"
        ),
        files=("model.safetensors",),
        hub="MahmoodLab/TITAN",
        licence="CC-BY-NC-ND-4.0",
        forbids=("commercial use", "sharing derivatives"),
        gated=True,
        source="Hugging Face hub, MahmoodLab/TITAN",
        references={
            "network": "arXiv 2411.19666; names as slide2vec's titan.py has them",
            "places": "level-0 pixels from the first tile, divided by patch_size_lv0",
            "output": "the pooling query without its projection: encode_slide_from_patch_features",
        },
        unverified=(
            "no_proj of encode_slide_from_patch_features: from memory of the model's code",
        ),
    ),
)

#: Name of a card -> the card; a user's file adds its own by `--extend`.
SLIDE_ENCODERS: dict[str, SlideCard] = {card.name: card for card in (*BASELINES, *PUBLISHED)}
