"""Attention within each segment of a packed sequence, never across: samples for the language model, images for
the vision encoder.

`Packing` says where the segments are and which backend is wanted; `attend` runs it; `choose` and `describe` say
which backend that is on this machine; `register` puts it into transformers' models.
"""

from sail_train.model.attention.backend import Backend
from sail_train.model.attention.choice import AUTO, BACKENDS, attend, choose, describe
from sail_train.model.attention.interface import PACKED_ATTENTION, no_mask, register
from sail_train.model.attention.packing import Packing

__all__ = [
    "AUTO",
    "BACKENDS",
    "PACKED_ATTENTION",
    "Backend",
    "Packing",
    "attend",
    "choose",
    "describe",
    "no_mask",
    "register",
]
