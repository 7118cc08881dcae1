"""Settings of `extract-features`."""

import re
from dataclasses import dataclass, fields, replace
from typing import Literal

from tiling.jobs.command import setting

Precision = Literal["auto", "fp32", "bf16", "fp16", "int8"]
Engine = Literal["torch", "auto", "compile", "openvino"]
BatchSize = int | Literal["auto"]


@dataclass(frozen=True)
class EmbedSettings:
    """How a network embeds patches; see the fields of `FeatureConfig` of the same names."""

    device: str = "auto"
    precision: Precision = "auto"
    batch_size: BatchSize = "auto"
    input_px: int = 0
    engine: Engine = "torch"


@dataclass(frozen=True)
class FeatureConfig:
    """What decides about the features, then how the job runs. Raises ValueError for impossible values."""

    encoder: str = setting(
        "resnet50",
        "resnet18, resnet34, resnet50, resnet50-trunc (as CLAM), resnet101, resnet152, wide-resnet50, wide-resnet101, "
        "resnext50, resnext101, vgg16, vgg19, googlenet, inception-v3, densenet121, mobilenet-v2, mobilenet-v3-small, "
        "mobilenet-v3-large, efficientnet-b0, efficientnet-v2-s, convnext-tiny, convnext-small, convnext-base, "
        "vit-b16, vit-b32, vit-l16, swin-t, swin-v2-t (ImageNet, torchvision), efficientnet-lite0; of pathology uni, "
        "uni2-h, virchow, virchow2, h-optimus-0, h-optimus-1, h0-mini, prov-gigapath, phikon, phikon-v2, midnight-12k, "
        "kaiko-s16, kaiko-s8, kaiko-b16, kaiko-b8, kaiko-l14, gpfm, lunit-dino-s16, lunit-dino-s8, ctranspath, retccl; "
        "timm:NAME, timm:hf-hub:OWNER/NAME, or one that an installed package brings. Several as uni,virchow2: in one "
        "pass, each into its folder below --out",
    )
    weights: str = setting(
        "default", "default (its published weights, pinned), random (the baseline), or a .pth or .safetensors file"
    )
    seed: int = setting(0, "seed of --weights random, and of the patches that --precision int8 holds back")
    input_px: int = setting(
        0, "side in pixels to which patches are resized; 0: as the encoder wants, convolutional ones as they are"
    )
    precision: Precision = setting(
        "auto",
        "arithmetic of the network; auto: bf16 where the hardware has it, else fp32; int8: on CPUs, by "
        "--engine openvino, calibrated on patches of these slides once and kept in --out (extra `int8`)",
    )
    int8_network: str = setting(
        "", "take the network of --precision int8 from this int8-network.safetensors, for slides of a trained model"
    )
    features_dtype: Literal["float16", "float32"] = setting("float16", "type of the stored features")
    device: str = setting(
        "auto", "cpu, cuda, cuda:1, several as cuda:0,cuda:1, or all GPUs; auto: the first GPU, else the CPU"
    )
    engine: Engine = setting(
        "torch",
        "what computes the network; compile: torch after a minute's compilation; openvino: CPU, extra `openvino`; "
        "auto: openvino where it is installed, on x86 CPUs and not for ViT, else torch",
    )
    batch_size: BatchSize = setting("auto", "patches in one forward pass; halved when CUDA memory is full")
    adapt_bn: bool = setting(
        False, "give the network's batch norms the statistics of these slides (AdaBN); estimated once, kept in --out"
    )
    adapted_norms: str = setting(
        "", "take the statistics of --adapt-bn from this adapted-norms.safetensors, for slides of a trained model"
    )
    stage: str = setting(
        "", "folder on a fast local disk for copies of what is read from an object store, and what goes there"
    )
    part: str = setting("", "do only part i/n of the slides (array jobs)")
    scheduler: str = setting("", "address of a Dask scheduler whose workers do the slides")
    overwrite: bool = setting(False, "replace outputs that were made with other settings")

    def __post_init__(self) -> None:
        if self.input_px < 0:
            raise ValueError(f"--input-px is {self.input_px}, expected 0 or more pixels")
        if self.batch_size != "auto" and self.batch_size < 1:
            raise ValueError(f"--batch-size is {self.batch_size}, expected at least 1, or auto")
        if self.adapt_bn and self.adapted_norms:
            raise ValueError("--adapt-bn estimates statistics and --adapted-norms names a file of them; give one")
        if self.precision == "int8" and self.engine not in ("openvino", "auto"):
            raise ValueError(f"--precision int8 is computed by OpenVINO, not by {self.engine}; add --engine openvino")
        if self.int8_network and self.precision != "int8":
            raise ValueError(f"--int8-network is for --precision int8, and --precision is {self.precision}")
        if self.seed < 0:
            raise ValueError(f"--seed is {self.seed}, expected 0 or more")

        if len(self.encoders) > 1:
            if len({replace(self, encoder=name).folder for name in self.encoders}) < len(self.encoders):
                raise ValueError(f"--encoder {self.encoder}: two of these are one")
            kept = self.adapt_bn or self.adapted_norms or self.precision == "int8"
            if self.weights not in ("default", "random") or kept:
                raise ValueError(
                    f"--encoder {self.encoder}: a weights file, --adapt-bn, --adapted-norms and --precision int8 are "
                    "for one encoder; run each by itself, with its own --out"
                )

    @property
    def encoders(self) -> list[str]:
        return [name.strip() for name in self.encoder.split(",")]

    @property
    def folder(self) -> str:
        """Name of the folder for the features, where there are several encoders."""
        return re.sub(r"[^\w.-]+", "-", self.encoder)

    @property
    def calibrates(self) -> bool:
        """Whether a network in int8 is to be made of the slides, or one that was kept in --out to be taken."""
        return self.precision == "int8" and not self.int8_network

    @property
    def fits_anew(self) -> bool:
        """Whether what was fitted to all slides is made again. A part takes it as it is, or each would make its own."""
        return self.overwrite and not self.part

    @property
    def embedding(self) -> EmbedSettings:
        """Those of the settings that the embedder itself takes."""
        return EmbedSettings(**{entry.name: getattr(self, entry.name) for entry in fields(EmbedSettings)})
