"""What a stage leaves in model/ is a model for anyone: a clean process loads it and asks it about a picture."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "loops"))

from loops_tiny import data, trained  # noqa: E402, F401

from sail_train.data.config import SourceConfig  # noqa: E402
from sail_train.data.held_out import held_out  # noqa: E402
from sail_train.generate.generator import Generator  # noqa: E402
from sail_train.loops.evaluation import load  # noqa: E402
from sail_train.types import Sampling  # noqa: E402

PROGRAM = """
import json, sys
import torch
import sail_train.auto
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

folder, image, question = sys.argv[1:]
model = AutoModelForImageTextToText.from_pretrained(folder).eval()
processor = AutoProcessor.from_pretrained(folder)
content = [{"type": "image", "image": Image.open(image)}, {"type": "text", "text": question}]
inputs = processor.apply_chat_template(
    [{"role": "user", "content": content}],
    tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True, think="off",
)
with torch.no_grad():
    out = model.generate(**inputs, max_new_tokens=24)
said = out[0, inputs["input_ids"].shape[1]:].tolist()
print(json.dumps({"answer": processor.decode(said), "config": model.generation_config.eos_token_id, "ids": said}))
"""


def test_a_clean_process_gives_the_answer_of_this_one(data: Path, trained: Path, tmp_path: Path) -> None:  # noqa: F811
    (asked, *_) = [
        sample for sample in held_out({"basic": SourceConfig(shards=f"{data}/eval/basic/*.tar")}, 20)
        if sample.verifier == "number"
    ]  # fmt: skip
    question = asked.prompt[-1].text
    (tmp_path / "digits.png").write_bytes(asked.images[0])
    command = [sys.executable, "-c", PROGRAM, str(trained / "model"), str(tmp_path / "digits.png"), question]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])

    model, processor = load(trained)
    generator = Generator(
        model.eval(), stop_token_ids=processor.stop_token_ids, pad_token_id=processor.token_ids["pad"],
        banned_token_ids=(processor.image_token_id,),
    )  # fmt: skip
    prompt = processor.prompt(asked, uid="one", think="off")
    ((completion,),) = generator.generate([prompt], Sampling(max_new_tokens=24, temperature=0.0))
    assert said["ids"] == list(completion.token_ids)
    assert said["answer"] == processor.decode(completion.token_ids) and "\\boxed{" in said["answer"]
    assert completion.finish_reason == "stop"


def test_the_folder_holds_safe_and_plain_files_alone(trained: Path) -> None:  # noqa: F811
    names = {path.name for path in (trained / "model").iterdir()}
    assert {"config.json", "model.safetensors", "generation_config.json", "tokenizer.json"} <= names
    assert {Path(name).suffix for name in names} <= {".json", ".safetensors", ".jinja"}
    for path in (trained / "model").glob("*.json"):
        assert str(trained.parent) not in path.read_text(), f"{path.name} names a path of this machine"
