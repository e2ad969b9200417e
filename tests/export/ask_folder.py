"""Asks the models of folders, by transformers alone: `python -I ask_folder.py SITE CACHE FILES FOLDER...`.

SITE is the one folder that packages are imported from ("" for the interpreter's own), FILES are pictures and at most
one video, with commas between. What each model says goes to said.safetensors beside its folder. The tests import `ask`
from here for their own side.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

NO_VIDEO = "videos need PyAV"


def ask(model: Any, processor: Any, files: list[str]) -> dict[str, Any]:
    """Name -> tensor: inputs, logits and greedy tokens of one picture, several, none, both in a batch, and a video."""
    import torch
    from PIL import Image

    first, second = (Image.open(path) for path in files[:2])
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
        for video in files[2:]:
            chat = [{"role": "user", "content": [{"type": "video"}, text]}]
            rendered = processor.apply_chat_template(chat, add_generation_prompt=True)
            found |= answers(model, "video", processor(text=rendered, videos=[video], return_tensors="pt"))
    return found


def answers(model: Any, name: str, inputs: Any) -> dict[str, Any]:
    found = {f"{name}/{key}": value for key, value in inputs.items()}
    found[f"{name}/logits"] = model(**inputs).logits
    found[f"{name}/greedy"] = model.generate(**inputs, max_new_tokens=5, do_sample=False, eos_token_id=None)
    return found


def main(site: str, cache: str, files: str, *folders: str) -> None:
    if site:
        sys.path.insert(0, site)
    import os

    os.environ |= {"HF_HOME": cache, "HF_HUB_OFFLINE": "1"}
    for folder in folders:
        one(Path(folder), files.split(","), Path(cache))


def one(folder: Path, files: list[str], cache: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

    torch.set_num_threads(1)
    trust = {"trust_remote_code": True}
    assert type(AutoConfig.from_pretrained(folder, **trust)).__name__ == "SailVLConfig"
    classes = (AutoModelForCausalLM, AutoModel, AutoModelForImageTextToText)
    asked = {"attn_implementation": "sdpa", "use_cache": True, "dtype": "auto"}  # as trainers and harnesses do
    models = [auto.from_pretrained(folder, **trust, **asked) for auto in classes]
    assert len({type(model) for model in models}) == 1
    model, processor = models[0].eval(), AutoProcessor.from_pretrained(folder, **trust)
    assert type(model).__module__.startswith("transformers_modules.") and "sail_train" not in sys.modules
    save_file(ask(model, processor, files), folder.parent / "said.safetensors")
    if len(files) == 2:
        check_no_video(processor, files[0])

    again = cache / f"{folder.parent.name}_again"
    model.save_pretrained(again)
    processor.save_pretrained(again)
    copy = AutoModelForCausalLM.from_pretrained(again, **trust)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), copy.parameters(), strict=True))
    assert type(AutoProcessor.from_pretrained(again, **trust)).__name__ == "SailVLProcessor"


def check_no_video(processor: Any, file: str) -> None:
    """Without PyAV a video is answered with what is missing."""
    try:
        processor(text="<video>", videos=[file])
    except ValueError as error:
        assert NO_VIDEO in str(error), error
    else:
        raise AssertionError("a video was read without PyAV")


if __name__ == "__main__":
    main(*sys.argv[1:])
