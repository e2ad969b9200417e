"""The vision-language model: vision encoder, adapter, language model, and how they are built, loaded and packed."""

ENCODERS = {
    "native": "sail_train.model.vision.native:NativeEncoder",
    "aimv2": "sail_train.model.vision.aimv2:Aimv2Encoder",
    "transformers": "sail_train.model.vision.foreign:ForeignEncoder",
}
"""Vision encoders by `model.vision.type`: module and class."""

ATTENTION = {
    "flash": "flash-attn's varlen kernel: a GPU, half precision, the extra `gpu`",
    "varlen": "torch's varlen attention: a GPU, half precision",
    "flex": "torch's FlexAttention with a block mask; no backward on CPU",
    "sdpa": "torch's scaled dot product, segments of like length together",
    "eager": "a plain softmax under a dense mask: the yardstick",
}
"""Kernels of packed attention by `model.attention`."""
