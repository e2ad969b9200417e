"""Asks the model of a folder, by transformers alone, and saves what it says: `python -I -S ask_folder.py SITE ...`.

SITE is the one folder that packages are imported from; the tests import `ask` from here for their own side.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def ask(model: Any, processor: Any, pictures: list[str], video: str | None) -> dict[str, Any]:
    """Name -> tensor: inputs, logits and greedy tokens of one picture, several, none, both in a batch, and a video."""
    import torch
    from PIL import Image

    first, second = (Image.open(path) for path in pictures)
    text = {"type": "text", "text": "What is shown here?"}
    image, other = {"type": "image", "image": first}, {"type": "image", "image": second}
    chats = {
        "image": [[image, text]],
        "images": [[image, other, text]],
        "text": [[text]],
        "batch": [[other, text], [text]],
    }
    found = {}
    with torch.no_grad():
        for name, contents in chats.items():
            inputs = processor.apply_chat_template(
                [[{"role": "user", "content": content}] for content in contents],
                tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True,
            )  # fmt: skip
            found |= answers(model, name, inputs)
        if video is not None:
            chat = [{"role": "user", "content": [{"type": "video"}, text]}]
            rendered = processor.apply_chat_template(chat, add_generation_prompt=True)
            found |= answers(model, "video", processor(text=rendered, videos=[video], return_tensors="pt"))
    return found


def answers(model: Any, name: str, inputs: Any) -> dict[str, Any]:
    found = {f"{name}/{key}": value for key, value in inputs.items()}
    found[f"{name}/logits"] = model(**inputs).logits
    found[f"{name}/greedy"] = model.generate(**inputs, max_new_tokens=5, do_sample=False, eos_token_id=None)
    return found


def main(site: str, cache: str, folder: str, out: str, *files: str) -> None:
    sys.path.insert(0, site)
    import os

    os.environ |= {"HF_HOME": cache, "HF_HUB_OFFLINE": "1"}
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

    torch.set_num_threads(1)
    trust = {"trust_remote_code": True}
    assert type(AutoConfig.from_pretrained(folder, **trust)).__name__ == "SailVLConfig"
    models = [
        c.from_pretrained(folder, **trust) for c in (AutoModelForCausalLM, AutoModel, AutoModelForImageTextToText)
    ]
    assert len({type(model) for model in models}) == 1
    model, processor = models[0].eval(), AutoProcessor.from_pretrained(folder, **trust)
    assert type(model).__module__.startswith("transformers_modules.") and "sail_train" not in sys.modules
    pictures = [file for file in files if not file.endswith(".mp4")]
    video = next((file for file in files if file.endswith(".mp4")), None)
    save_file(ask(model, processor, pictures, video), out)

    again = Path(cache) / "again"
    model.save_pretrained(again)
    processor.save_pretrained(again)
    copy = AutoModelForCausalLM.from_pretrained(again, **trust)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), copy.parameters(), strict=True))
    assert type(AutoProcessor.from_pretrained(again, **trust)).__name__ == "SailVLProcessor"


if __name__ == "__main__":
    main(*sys.argv[1:])
