"""Networks of other libraries for ``surgery``, in families. Their weights take no memory."""

import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torchvision import models

# Names that torchvision.models.get_model knows.
TORCHVISION = {
    "torchvision classification": (
        "resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "densenet121", "vgg11_bn",
        "googlenet", "inception_v3", "efficientnet_b0", "efficientnet_v2_s", "mobilenet_v2",
        "mobilenet_v3_small", "mobilenet_v3_large", "mnasnet1_0", "shufflenet_v2_x1_0",
        "regnet_x_400mf", "regnet_y_400mf", "convnext_tiny", "vit_b_16", "swin_t", "swin_v2_t",
        "maxvit_t",
    ),
    "torchvision detection and segmentation": (
        "fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2", "maskrcnn_resnet50_fpn",
        "keypointrcnn_resnet50_fpn", "retinanet_resnet50_fpn_v2", "fcos_resnet50_fpn",
        "ssdlite320_mobilenet_v3_large", "fcn_resnet50", "deeplabv3_resnet50",
        "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large",
    ),
}  # fmt: skip
TIMM = {
    "timm convolutional": (
        "resnet18", "resnet50", "resnet50d", "resnetv2_50", "resnext50_32x4d", "seresnet50",
        "ecaresnet50d", "resnest50d", "res2net50_26w_4s", "skresnet50", "cspresnet50",
        "cspdarknet53", "regnetx_002", "regnety_002", "regnetz_b16", "densenet121", "dpn68",
        "vgg11_bn", "efficientnet_b0", "tf_efficientnetv2_s", "tf_efficientnet_lite0",
        "mobilenetv2_100", "mobilenetv3_large_100", "mobilenetv4_conv_small", "mnasnet_100",
        "lcnet_050", "rexnet_100", "ghostnet_100", "ghostnetv2_100", "hrnet_w18", "dla34",
        "ese_vovnet39b", "inception_v3", "inception_v4", "xception41", "nfnet_f0", "repvgg_a0",
        "mobileone_s0", "hgnetv2_b0", "convnext_tiny", "convnextv2_tiny", "inception_next_tiny",
    ),
    "timm attention": (
        "vit_base_patch16_224", "deit3_small_patch16_224", "deit_tiny_distilled_patch16_224",
        "beit_base_patch16_224", "eva02_tiny_patch14_224", "swin_tiny_patch4_window7_224",
        "swinv2_tiny_window8_256", "cait_xxs24_224", "mixer_b16_224", "resmlp_12_224",
        "xcit_tiny_12_p8_224", "pvt_v2_b0", "twins_pcpvt_small", "maxvit_tiny_tf_224",
        "coatnet_0_224", "levit_128", "fastvit_t8", "efficientformerv2_s0", "efficientvit_b0",
        "edgenext_small", "mobilevit_s", "mobilevitv2_100", "poolformer_s12", "hiera_tiny_224",
        "davit_tiny", "tiny_vit_5m_224",
    ),
}  # fmt: skip
# Model types of transformers, each with its default configuration.
TRANSFORMERS = {
    "transformers text": (
        "bert", "distilbert", "roberta", "xlm-roberta", "electra", "albert", "deberta-v2",
        "modernbert", "gpt2", "gpt_neox", "opt", "t5", "bart", "marian", "llama", "mistral",
        "mixtral", "qwen2", "qwen3", "phi3", "gemma", "gemma2", "olmo2", "cohere", "falcon",
        "gpt_oss", "mamba",
    ),
    "transformers vision": (
        "vit", "deit", "beit", "dinov2", "swin", "swinv2", "convnext", "convnextv2", "resnet",
        "regnet", "mobilenet_v1", "mobilenet_v2", "mobilevit", "efficientnet", "levit", "pvt_v2",
        "segformer", "detr", "yolos", "clip", "siglip",
    ),
    "transformers audio": (
        "whisper", "wav2vec2", "hubert", "wavlm", "wav2vec2-conformer", "seamless_m4t",
        "audio-spectrogram-transformer", "clap", "encodec",
    ),
}  # fmt: skip
# Architecture and encoder of segmentation_models_pytorch.
SMP = (
    "Unet resnet34", "Unet efficientnet-b0", "Unet mobilenet_v2", "Unet densenet121",
    "Unet mit_b0", "UnetPlusPlus resnet34", "MAnet resnet34", "Linknet resnet34", "FPN resnet34",
    "PSPNet resnet34", "PAN resnet34", "DeepLabV3 resnet34", "DeepLabV3Plus resnet34",
    "UPerNet resnet34", "Segformer resnet34",
)  # fmt: skip
_VOLUMES = {"spatial_dims": 3, "in_channels": 1, "out_channels": 3}
# Class of MONAI and its arguments.
MONAI: dict[str, dict[str, Any]] = {
    "UNet": {**_VOLUMES, "channels": (16, 32, 64), "strides": (2, 2), "num_res_units": 2},
    "BasicUNet": _VOLUMES,
    "AttentionUnet": {**_VOLUMES, "channels": (16, 32, 64), "strides": (2, 2)},
    "DynUNet": {**_VOLUMES, "kernel_size": (3, 3, 3), "strides": (1, 2, 2),
                "upsample_kernel_size": (2, 2)},
    "SegResNet": _VOLUMES,
    "UNETR": {"in_channels": 1, "out_channels": 3, "img_size": (96, 96, 96)},
    "SwinUNETR": {"in_channels": 1, "out_channels": 3},
    "DenseNet121": _VOLUMES,
    "resnet18": {"spatial_dims": 3, "n_input_channels": 1},
}  # fmt: skip
_READ_TENSORS = (
    "SwinUNETR",
    "Unet mit_b0",
    "regnet_x_400mf",
    "regnet_y_400mf",
)  # when they are made

Network = tuple[str, str, nn.Module]  # family, name and module


def networks() -> Iterator[Network]:
    """Yield the networks of the libraries that are installed."""
    for packages, families, make in (
        (["torchvision"], TORCHVISION, _torchvision),
        (["timm"], TIMM, _timm),
        (["transformers"], TRANSFORMERS, _transformers),
        (["segmentation_models_pytorch"], {"segmentation-models-pytorch": SMP}, _smp),
        (["monai", "einops"], {"MONAI": MONAI}, _monai),
    ):
        if all(map(find_spec, packages)):
            for family, names in families.items():
                for name in names:
                    yield family, name, _made(make, name)


def _made(make: Callable[[str], nn.Module], name: str) -> nn.Module:
    device = torch.device("cpu" if name in _READ_TENSORS else "meta")
    with device, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what libraries say of themselves
        return make(name)


def _torchvision(name: str) -> nn.Module:
    options: dict[str, Any] = {"weights": None}
    if name in ("googlenet", "inception_v3"):
        options |= {"init_weights": False}
    if name in TORCHVISION["torchvision detection and segmentation"]:
        options |= {"weights_backbone": None}
    network: nn.Module = models.get_model(name, **options)
    return network


def _timm(name: str) -> nn.Module:
    import timm

    network: nn.Module = timm.create_model(name)
    return network


def _transformers(name: str) -> nn.Module:
    import transformers

    # DETR's default backbone would be downloaded.
    options = {"backbone_config": transformers.ResNetConfig()} if name == "detr" else {}
    config = transformers.AutoConfig.for_model(name, **options)
    network: nn.Module = transformers.AutoModel.from_config(config)
    return network


def _smp(name: str) -> nn.Module:
    import segmentation_models_pytorch as smp

    architecture, encoder = name.split()
    network: nn.Module = getattr(smp, architecture)(encoder, encoder_weights=None)
    return network


def _monai(name: str) -> nn.Module:
    from monai.networks import nets

    network: nn.Module = getattr(nets, name)(**MONAI[name])
    return network
