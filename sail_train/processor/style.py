"""Chat styles: everything in which the text of one family of models differs from another's, as plain data.

All are ChatML; what follows is the only thing that `template.render` and the Jinja template look at. `model.template`
of a config names a style. Nothing heavy is imported, so that a typo in that name is answered at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
IMAGE_START, IMAGE_END, IMAGE_TOKEN = "<img>", "</img>", "<IMG_CONTEXT>"
THINK_START, THINK_END = "<think>", "</think>"


@dataclass(frozen=True, kw_only=True)
class ChatStyle:
    """How turns, images, frames and thoughts are written."""

    system: str | None = None
    """System message of conversations that bring none, unless the processor has its own; None: they have no such
    turn."""
    think_systems: Mapping[str, str] = field(default_factory=dict)
    """What the system message begins with by think mode ("on", "off", "auto"): asks for a thought, or for none."""
    flags: Mapping[str, str] = field(default_factory=dict)
    """What the last user message ends with by think mode: the other way of asking."""
    turn_end: str = "\n"
    """Text after each turn's <|im_end|>."""
    image_tokens: tuple[str, str] = (IMAGE_START, IMAGE_END)
    """Control tokens around the placeholders of an image, or of a frame."""
    image_label: str = ""
    """Text before an image of a conversation that has several, with its {number}."""
    after_image: str = ""
    frame_label: str = "[{seconds} second]"
    """Text before a frame of a video, with its {number} or its {seconds}."""
    after_frame: str = ""
    thought: tuple[str, str] = (f"{THINK_START}\n", f"\n{THINK_END}\n\n")
    """Texts around a thought; the answer follows."""
    direct: str = ""
    """Text before an answer without a thought."""
    text_tokens: tuple[str, ...] = ()
    """Further tokens that are part of a text, one each."""

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """Tokens that the template alone writes, in the order in which a tokenizer that lacks them gets them."""
        return (END_OF_TEXT, TURN_START, TURN_END, *self.image_tokens, IMAGE_TOKEN)

    @property
    def block(self) -> bool:
        """Whether an answer without a thought still opens with a block, an empty one."""
        return bool(self.direct)

    def opening(self, think: str) -> str:
        """What the answer that `think` asks for begins with; a forced prompt ends with it."""
        return {"on": self.thought[0], "off": self.direct, "auto": ""}[think]

    def label_image(self, number: int) -> str:
        """Text before the image of that number, counted from 1."""
        return self.image_label.replace("{number}", str(number))

    def label_frame(self, number: int, seconds: float) -> str:
        """Text before the frame of that number, counted from 1, which is shown at `seconds`."""
        return self.frame_label.replace("{number}", str(number)).replace("{seconds}", str(round(float(seconds), 1)))


QWEN3 = ChatStyle(
    flags={"on": " /think", "off": " /no_think"},
    # Also before a direct answer stands a block, an empty one: how to open is learnt.
    direct=f"{THINK_START}\n\n{THINK_END}\n\n",
)

# SAIL-VL2 (arXiv 2509.14033), from the released models' chat code and README. Not recorded and therefore ours: what
# joins the suffix to the question (a newline) and the white space around a thought (Qwen3's, its language model's).
SAIL_VL2 = ChatStyle(
    system="你是由抖音内容理解组开发的多模态大模型，英文名叫UniVL, 是一个有用无害的人工智能助手。",
    flags={
        "on": "\nYou FIRST think about the reasoning process as an internal monologue and then provide the final "
        "answer. The reasoning process MUST BE enclosed within <think> </think> tags. "
        "The final answer MUST BE put in \\boxed{}."
    },
    turn_end="",
    image_label="Image-{number}: ",
    after_image="\n",
    frame_label="Frame-{number}: ",
    after_frame="\n",
    # The released tokenizers' order; with a Qwen3 vocabulary of 151,669 tokens <IMG_CONTEXT> is 151,671.
    text_tokens=("<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"),
)

# Seed1.5-VL (arXiv 2505.07062, sections 2.2, 4.1, 4.4, appendix B). Its tokenizer and turn format are unpublished:
# ChatML stands in for them, and the wording of the two system prompts is ours. <bbox>, <point> and the like are plain
# text, since nothing says that they are tokens.
SEED1_5_VL = ChatStyle(
    think_systems={
        "on": "Think about the question first, inside <think></think>, then give the answer.",
        "off": "Answer the question directly.",
    },
    image_tokens=("[SOI]", "[EOI]"),
    thought=(THINK_START, THINK_END),
)

STYLES: dict[str, ChatStyle] = {"qwen3": QWEN3, "sail_vl2": SAIL_VL2, "seed1_5_vl": SEED1_5_VL}
"""By `model.template`."""
