"""Graders of responses; pure Python, no torch.

A response is split into thought and final answer (`format`), the answer is compared with the truth by the verifier
its sample names (the table below), the thought may be judged (`judge`), and the parts are weighed (`mix`).
A new verifier is one function `(answer, final, config) -> Score` and one line here.
"""

from sail_train.rewards.verifiers import verify, verify_all

VERIFIERS = {
    "anls": "sail_train.rewards.text:anls",
    "box": "sail_train.rewards.boxes:box",
    "boxes": "sail_train.rewards.boxes:boxes",
    "choice": "sail_train.rewards.text:choice",
    "contains": "sail_train.rewards.text:contains",
    "exact": "sail_train.rewards.text:exact",
    "grid": "sail_train.rewards.numeric:grid",
    "math": "sail_train.rewards.mathematics:mathematics",
    "number": "sail_train.rewards.numeric:number",
    "relaxed": "sail_train.rewards.numeric:relaxed",
    "yesno": "sail_train.rewards.text:yesno",
}
"""Verifiers by the name a sample gives, as module:function; a module is imported when its verifier is first used."""

__all__ = ["VERIFIERS", "verify", "verify_all"]
