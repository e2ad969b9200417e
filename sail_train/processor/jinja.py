"""A chat style as a Jinja template: what `template.render` does, for tools that know transformers alone.

`think` ("on", "off", "auto") and `force` are its variables beside the usual ones. An image is written as "<image>",
a video as "<video>"; `SailVLProcessor.__call__` puts their tokens there.
"""

from __future__ import annotations

import json
import re

from sail_train.processor.style import ChatStyle
from sail_train.types import THINK_MODES

IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER = "<image>", "<video>"


def chat_template(style: ChatStyle, system: str | None) -> str:
    """The template of a style and a processor's system message (None: the style's)."""
    values = {
        "SYSTEM": (style.system if system is None else system) or "",
        "THINK_SYSTEMS": {think: style.think_systems.get(think, "") for think in THINK_MODES},
        "FLAGS": {think: style.flags.get(think, "") for think in THINK_MODES},
        "OPENINGS": {think: style.opening(think) for think in THINK_MODES},
        "LABEL": style.image_label,
        "AFTER_IMAGE": style.after_image,
        "BEFORE_THOUGHT": style.thought[0],
        "AFTER_THOUGHT": style.thought[1],
        "DIRECT": style.direct,
        "TURN_END": style.turn_end,
    }
    # Jinja reads JSON's strings and objects as they are, but knows no surrogate pairs: characters stay themselves.
    constants = {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}
    return re.sub("|".join(rf"\b{name}\b" for name in constants), lambda match: constants[match[0]], _JINJA)


_JINJA = """\
{%- set think = think | default("auto") -%}
{%- set ns = namespace(last_user=-1, images=0, number=0) -%}
{%- for message in messages -%}
  {%- if message.role == "user" -%}{%- set ns.last_user = loop.index0 -%}{%- endif -%}
  {%- if message.content is not string -%}
    {%- for part in message.content -%}
      {%- if part.type == "image" -%}{%- set ns.images = ns.images + 1 -%}{%- endif -%}
    {%- endfor -%}
  {%- endif -%}
{%- endfor -%}
{%- macro parts(content) -%}
  {%- if content is string -%}{{- content -}}
  {%- else -%}
    {%- for part in content -%}
      {%- if part.type == "image" -%}
        {%- set ns.number = ns.number + 1 -%}
        {%- if ns.images > 1 -%}{{- LABEL.replace("{number}", ns.number | string) -}}{%- endif -%}
        {{- "<image>" + AFTER_IMAGE -}}
      {%- elif part.type == "video" -%}{{- "<video>" -}}
      {%- else -%}{{- part.text -}}{%- endif -%}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- set own = messages and messages[0].role == "system" -%}
{%- set asked = THINK_SYSTEMS.get(think, "") -%}
{%- if own or asked or SYSTEM -%}
  {{- "<|im_start|>system\\n" + asked -}}
  {%- if asked and (messages[0].content if own else SYSTEM) -%}{{- "\\n\\n" -}}{%- endif -%}
  {%- if own -%}{{- parts(messages[0].content) -}}{%- else -%}{{- SYSTEM -}}{%- endif -%}
  {{- "<|im_end|>" + TURN_END -}}
{%- endif -%}
{%- for message in messages -%}
  {%- if message.role == "assistant" -%}
    {%- set text = parts(message.content) | trim -%}
    {%- set thought = "" -%}
    {%- if text.startswith("<think>") and "</think>" in text -%}
      {%- set thought = text[7:].split("</think>", 1)[0] | trim -%}
      {%- set text = text[7:].split("</think>", 1)[1] | trim -%}
    {%- endif -%}
    {{- "<|im_start|>assistant\\n" -}}
    {%- if thought and loop.index0 >= ns.last_user -%}{{- BEFORE_THOUGHT + thought + AFTER_THOUGHT -}}
    {%- else -%}{{- DIRECT -}}{%- endif -%}
    {{- text + "<|im_end|>" + TURN_END -}}
  {%- elif message.role != "system" or not loop.first -%}
    {{- "<|im_start|>" + message.role + "\\n" + parts(message.content) -}}
    {%- if loop.index0 == ns.last_user -%}{{- FLAGS.get(think, "") -}}{%- endif -%}
    {{- "<|im_end|>" + TURN_END -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- "<|im_start|>assistant\\n" -}}
  {%- if force is defined and force -%}{{- OPENINGS.get(think, "") -}}{%- endif -%}
{%- endif -%}
"""
