from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sail_train.model.build import build_model, save_model
from sail_train.model.config import ImageConfig, LanguageConfig, ModelConfig, VisionConfig
from sail_train.processor.config import ProcessorConfig
from sail_train.processor.processor import build_processor
from sail_train.processor.tokenizer import train_tokenizer

PROGRAM = """
import sys, torch
import sail_train.auto
from PIL import Image
from transformers import (AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor,
                          AutoTokenizer)

folder = sys.argv[1]
assert type(AutoConfig.from_pretrained(folder)).__name__ == "SailVLConfig"
models = [c.from_pretrained(folder) for c in (AutoModelForImageTextToText, AutoModel, AutoModelForCausalLM)]
assert {type(m).__name__ for m in models} == {"SailVLForConditionalGeneration"}
model = models[0].eval()
assert all(torch.equal(a, b) for m in models for a, b in zip(model.parameters(), m.parameters()))
processor = AutoProcessor.from_pretrained(folder)
assert type(processor).__name__ == "SailVLProcessor"
assert len(AutoTokenizer.from_pretrained(folder)) == processor.vocab_size

image = Image.linear_gradient("L").resize((30, 20))
chat = lambda *parts: [{"role": "user", "content": list(parts)}]
text = {"type": "text", "text": "What is 3 and 4?"}
chats = [chat({"type": "image", "image": image}, text), chat({"type": "text", "text": "Hi"})]
inputs = processor.apply_chat_template(
    chats, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True, think="on")
assert not inputs["attention_mask"].all(), "the batch should need padding"
rendered = processor.apply_chat_template(chats, add_generation_prompt=True, think="on")
by_text = processor(text=rendered, images=[image], return_tensors="pt")
assert all(torch.equal(inputs[name], by_text[name]) for name in inputs)

model.generation_config.eos_token_id = None
out = model.generate(**inputs, max_new_tokens=6)
with torch.no_grad():
    for row, new in enumerate(out[:, -6:].tolist()):
        ids = inputs["input_ids"][row][inputs["attention_mask"][row].bool()]
        images = {k: inputs[k] for k in ("patches", "grids")} if row == 0 else {}
        for expected in new:
            token = model(input_ids=ids[None], use_cache=False, **images).logits[0, -1].argmax()
            assert token == expected, (row, token, expected)
            ids = torch.cat((ids, token[None]))
assert isinstance(processor.batch_decode(out)[0], str)
print("ok")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer, folder = tmp_path_factory.mktemp("tokenizer"), tmp_path_factory.mktemp("model")
    train_tokenizer(["What is 3 and 4? user system assistant"] * 5, 300).save_pretrained(tokenizer)
    config = ModelConfig(
        vision=VisionConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, patch_size=5,
            initializer_range=0.3,
        ),
        language=LanguageConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            head_dim=8, initializer_range=0.3,
        ),
        image=ImageConfig(min_pixels=100, max_pixels=4096),
    )  # fmt: skip
    processor = build_processor(
        ProcessorConfig(
            tokenizer=str(tokenizer),
            image={"patch_size": 5, "min_pixels": 100, "max_pixels": 4096},
            system="Be brief.",
        )
    )
    vlm = build_model(config, parents={}, seed=0, token_ids=processor.token_ids, vocab_size=processor.vocab_size)
    save_model(vlm, folder)
    processor.save_pretrained(folder)
    return folder


def test_a_folder_loads_and_generates_in_a_clean_process(folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(folder)], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "ok", done.stderr
    assert "trust_remote_code" not in done.stderr and "were not used" not in done.stderr


def test_the_folder_names_no_path_of_the_machine(folder: Path) -> None:
    for file in folder.glob("*.json"):
        assert str(folder.parent) not in file.read_text(), file.name
