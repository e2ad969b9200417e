"""Importing this registers our config, model and processor with transformers' Auto classes.

import sail_train.auto
model = AutoModelForImageTextToText.from_pretrained(folder)
processor = AutoProcessor.from_pretrained(folder)
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from sail_train.model.hf_config import SailVLConfig, SailVLVisionConfig
from sail_train.model.vlm import SailVLForConditionalGeneration
from sail_train.processor.processor import SailVLProcessor

AutoConfig.register(SailVLVisionConfig.model_type, SailVLVisionConfig, exist_ok=True)
AutoConfig.register(SailVLConfig.model_type, SailVLConfig, exist_ok=True)
for auto_class in (AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText):
    auto_class.register(SailVLConfig, SailVLForConditionalGeneration, exist_ok=True)
AutoProcessor.register(SailVLConfig, SailVLProcessor, exist_ok=True)
