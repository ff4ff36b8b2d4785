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

_CHIEF_REFERENCES = {
    "network": "hms-dbmi/CHIEF models/CHIEF.py: WSI_feature",
    "tiles": "256 px at 10x, by TRIDENT and the authors",
}
_CHIEF_UNUSED = r"(classifiers|instance_classifiers|att_head|text_to_vision|organ_embedding).*"
_GATED = f"{NETWORKS}.gated_attention"


def _feather(name: str, column: str, width: int, tile_px: int, hub: str) -> SlideCard:
    """Return a card of FEATHER for one encoder of tiles."""
    return SlideCard(
        name=name,
        loader=f"{_GATED}:build_feather",
        arguments={"input_dim": width, "dim": 512, "hidden": 384},
        inputs=(column,),
        input_dim=width,
        dim=512,
        tile_px=tile_px,
        mpp=0.5,
        units=("slide", "patient", "section"),
        has_weights=True,
        keys=((r"^model\.", ""),),
        unused=r"(model\.)?classifier.*",
        files=("model.safetensors",),
        hub=hub,
        licence="unread",
        gated=True,
        source=f"Hugging Face hub, {hub}",
        references={
            "network": "mahmoodlab/MIL-Lab src/models/abmil.py: forward_features",
            "tiles": "TRIDENT",
        },
        unverified=("its licence", "that the published file has the base configuration"),
    )


GATED_ATTENTION = (
    SlideCard(
        name="chief",
        loader=f"{_GATED}:build_chief",
        arguments={"input_dim": 768, "dim": 512, "hidden": 256},
        inputs=("chief_ctranspath",),
        input_dim=768,
        dim=768,
        tile_px=256,
        mpp=1.0,
        units=("slide", "patient", "section"),
        has_weights=True,
        # dropout stands between the layers of the authors' file, whose numbers it takes
        unused=_CHIEF_UNUSED,
        files=("CHIEF_pretraining.safetensors", "CHIEF_pretraining.pth"),
        licence="AGPL-3.0",
        source="the authors' drive, CHIEF_pretraining.pth (hms-dbmi/CHIEF)",
        references=_CHIEF_REFERENCES,
        unverified=("10x is 1.0 mpp",),
    ),
    SlideCard(
        name="eagle",
        loader=f"{_GATED}:build_eagle",
        arguments={"dim": 512, "hidden": 256},
        inputs=("chief_ctranspath", "virchow2"),
        dim=2560,
        units=("slide", "patient", "section"),
        has_weights=True,
        unused=_CHIEF_UNUSED,
        files=("CHIEF_pretraining.safetensors", "CHIEF_pretraining.pth"),
        licence="AGPL-3.0 (CHIEF's)",
        source="CHIEF's weights, as eagle.safetensors",
        references={"network": "KatherLab/STAMP eagle.py: the 25 highest scores of CHIEF"},
        unverified=("the tiles that its authors recommend",),
    ),
    SlideCard(
        name="madeleine",
        loader=f"{_GATED}:build_madeleine",
        arguments={"input_dim": 512, "dim": 512, "heads": 4},
        inputs=("conch",),
        input_dim=512,
        dim=512,
        tile_px=256,
        mpp=1.0,
        units=("slide", "patient", "section"),
        has_weights=True,
        keys=((r"^module\.", ""),),
        unused=r"(module\.)?(token_projector|embedding)\..*",
        files=("model.safetensors", "model.pt"),
        hub="MahmoodLab/madeleine",
        licence="CC-BY-NC-ND-4.0",
        forbids=("commercial use", "sharing derivatives"),
        gated=True,
        source="Hugging Face hub, MahmoodLab/madeleine",
        references={
            "network": "mahmoodlab/MADELEINE models/Model.py: encode_he",
            "tiles": "256 px at 10x, by TRIDENT",
        },
        unverified=("four heads of width 512, softmax: model_config.json is gated",),
    ),
    _feather("feather", "conch15", 768, 512, "MahmoodLab/abmil.base.conch_v15.pc108-24k"),
    _feather("feather_uni2", "uni2_h", 1536, 256, "MahmoodLab/abmil.base.uni_v2.pc108-24k"),
)

#: The licences of these keep their code: the user's copy of it is run.
AUTHORS_CODE = (
    SlideCard(
        name="prism",
        loader=f"{NETWORKS}.authors_model:build_prism",
        inputs=("virchow",),
        input_dim=2560,
        dim=1280,
        tile_px=224,
        mpp=0.5,
        units=("slide", "patient", "section"),
        hub="paige-ai/Prism",
        licence="CC-BY-NC-ND-4.0",
        forbids=("commercial use", "sharing derivatives"),
        gated=True,
        source="your copy of the hub's paige-ai/Prism, by --code",
        references={"network": "TRIDENT, STAMP: slide_representations, image_embedding"},
        unverified=("run here with a stand-in alone",),
    ),
    SlideCard(
        name="care",
        loader=f"{NETWORKS}.authors_model:build_care",
        inputs=("conch15",),
        input_dim=768,
        dim=512,
        tile_px=512,
        mpp=0.5,
        places="cells",
        hub="Zipper-1/CARE",
        licence="unread",
        gated=True,
        source="your copy of the hub's Zipper-1/CARE, by --code",
        references={"network": "TRIDENT: wsi_embedding", "places": "TRIDENT: coords // patch_size"},
        unverified=("its licence", "run here with a stand-in alone"),
    ),
)

#: Name of a card -> the card; a user's file adds its own by `--extend`.
SLIDE_ENCODERS: dict[str, SlideCard] = {
    card.name: card for card in (*BASELINES, *PUBLISHED, *GATED_ATTENTION, *AUTHORS_CODE)
}
