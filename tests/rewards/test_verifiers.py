r"""Verifiers: the table of known behaviours, and that a failure is never a wrong answer."""

import pytest

from sail_train.rewards import VERIFIERS, verify, verify_all
from sail_train.rewards.config import VerifierConfig
from sail_train.rewards.math_pool import shared_pool
from sail_train.rewards.verifiers import Request, partial, verifier

RIGHT, WRONG, UNREADABLE, BROKEN = (1.0, "ok"), (0.0, "ok"), (0.0, "unparsable"), (0.0, "error")


@pytest.mark.parametrize(
    ("name", "answer", "response", "expected"),
    [
        ("exact", "Red Circle", "  red   circle. ", RIGHT),
        ("exact", "red circle", "\\boxed{\\text{red circle}}", RIGHT),
        ("exact", "red circle", "a red circle", WRONG),
        ("contains", "cat", "a black Cat, sleeping", RIGHT),
        ("contains", "cat", "a category", WRONG),
        ("number", "7", "\\boxed{7}", RIGHT),
        ("number", "7", "7.0", RIGHT),
        ("number", "1234", "\\boxed{1,234}", RIGHT),
        ("number", "7", "There are 7 apples", RIGHT),
        ("number", "-3", "x = -3", RIGHT),
        ("number", "7", "\\boxed{8}", WRONG),
        ("number", "2", "\\boxed{1+1}", UNREADABLE),
        ("number", "2", "\\boxed{3-1}", UNREADABLE),
        ("number", "7", "7 or 8", UNREADABLE),
        ("number", "7", "seven", UNREADABLE),
        ("number", "7", "<think>\n7\n</think>\n\n", UNREADABLE),
        ("number", "7", "<think>\n7", UNREADABLE),
        ("number", "7", "\\boxed{7}\\boxed{8}", UNREADABLE),
        ("number", "seven", "\\boxed{7}", BROKEN),
        ("relaxed", "100", "105", RIGHT),
        ("relaxed", "100", "105.01", WRONG),
        ("relaxed", "50%", "0.5", RIGHT),
        ("relaxed", "0", "0.01", WRONG),
        ("relaxed", "1999", "2000", WRONG),
        ("relaxed", "1999.5", "2000", RIGHT),
        ("relaxed", "Red", "red", RIGHT),
        ("relaxed", "12", "red", WRONG),
        ("choice", "B", "\\boxed{B}", RIGHT),
        ("choice", "B", "(b).", RIGHT),
        ("choice", "B", "\\boxed{\\text{B}}", RIGHT),
        ("choice", "B", "The answer is (B) because it is red", RIGHT),
        ("choice", "A", "A dog is in the picture", UNREADABLE),
        ("choice", "B", "The answer is A or maybe option B", UNREADABLE),
        ("choice", "B", "C", WRONG),
        ("choice", "blue", "C", BROKEN),
        ("yesno", "yes", "Yes, it is.", RIGHT),
        ("yesno", "no", "\\boxed{False}", RIGHT),
        ("yesno", "no", "yes", WRONG),
        ("yesno", "no", "nothing of the kind", UNREADABLE),
        ("yesno", "maybe", "yes", BROKEN),
        ("box", "[0,0,100,100]", "[0, 0, 100, 100]", RIGHT),
        ("box", "[0,0,100,100]", "first [9,9,9,9] then [0, 0, 100, 50]", RIGHT),
        ("box", "[0,0,100,100]", "[0, 0, 100, 49]", WRONG),
        ("box", "[0,0,100,100]", "[200, 200, 300, 300]", WRONG),
        ("box", "[0,0,100,100]", "[100, 100, 0, 0]", UNREADABLE),
        ("box", "[0,0,100,100]", "top left", UNREADABLE),
        ("box", "[100,0,0,100]", "[0, 0, 100, 100]", BROKEN),
        ("box", "<bbox>0 0 100 100</bbox>", "It is at <bbox>0 0 100 99</bbox>.", RIGHT),
        ("box", "<bbox>0 0 100 100</bbox>", "[0, 0, 100, 100]", RIGHT),
        ("box", "<bbox>0 0 100 100</bbox>", "<bbox>0 0 100 49</bbox>", WRONG),
        ("box", "<bbox>0 0 100 100</bbox>", "<bbox>0 0 100</bbox>", UNREADABLE),
        ("boxes", "[0,0,9,9] [20,20,40,40]", "<bbox>20 20 40 40</bbox><bbox>0 0 9 9</bbox>", RIGHT),
        ("boxes", "[0,0,9,9] [20,20,40,40]", "[50, 50, 60, 60]", WRONG),
        ("boxes", "[0,0,9,9]", "everywhere", UNREADABLE),
        ("boxes", "two", "[0,0,9,9]", BROKEN),
        ("grid", "351209744", "351 209 744", RIGHT),
        ("grid", "351209744", "3512097440", WRONG),
        ("grid", "351209744", "35120974", WRONG),
        ("grid", "351209744", "no grid", UNREADABLE),
        ("grid", "none", "1", BROKEN),
        ("anls", "hello", "hello", RIGHT),
        ("anls", "hello", "xyz", WRONG),
    ],
)
def test_known_verdicts(name, answer, response, expected):
    score = verify(name, answer, response)
    assert (score.value, score.status) == expected, score


def test_boxes_missing_added_and_repeated_cost():
    truth = "[0,0,10,10] [20,20,40,40]"
    assert verify("boxes", truth, "[0,0,10,10]").value == pytest.approx(2 / 3)
    assert verify("boxes", truth, "[0,0,10,10] [20,20,40,40] [50,50,60,60]").value == pytest.approx(4 / 5)
    assert verify("boxes", truth, "[0,0,10,10] [0,0,10,10]").value == pytest.approx(1 / 2)


def test_anls_is_graded_from_one_half():
    assert verify("anls", "abcd", "abxy").value == pytest.approx(0.5)
    assert verify("anls", "abcd", "axyz").value == 0.0
    assert verify("anls", "Invoice  No", "invoice no").value == 1.0


@pytest.mark.parametrize(
    ("answer", "boxed", "expected"),
    [
        ("B", "B", BROKEN),  # math-verify reads letters as products of symbols
        ("Yes", "Yes", BROKEN),
        ("10", "10\\%", RIGHT),
        ("0.1", "10\\%", RIGHT),
        ("10\\%", "0.1", RIGHT),
        ("10", "20\\%", WRONG),
        ("2", "1+1", UNREADABLE),
        ("2", "\\sqrt{4}", UNREADABLE),
        ("5", "x=5", RIGHT),
        ("5", "5\\text{ cm}", RIGHT),
        ("1/3", "0.333", WRONG),
        ("1/3", "0.333333", RIGHT),
        ("\\frac{1}{2}", "0.5", RIGHT),
        ("\\pi", "3.14159265", RIGHT),
        ("\\sqrt{8}", "2\\sqrt{2}", RIGHT),
        ("x+1", "1+x", RIGHT),
        ("(1,2)", "1<x<2", WRONG),
        ("1<x<2", "(1,2)", RIGHT),
        ("1,234", "1234", RIGHT),
        ("\\frac{", "1", BROKEN),
        ("7", "5" * 600, UNREADABLE),
    ],
)
def test_known_verdicts_on_mathematics(answer, boxed, expected):
    score = verify("math", answer, f"<think>\nhm\n</think>\n\n\\boxed{{{boxed}}}")
    assert (score.value, score.status) == expected, score


def test_mathematics_must_stand_in_one_box_after_the_thought():
    assert verify("math", "7", "the final answer is $7$").status == "unparsable"
    assert verify("math", "7", "<think>\\boxed{7}</think>").status == "unparsable"
    assert verify("math", "5", "\\boxed{5} \\boxed{7}").status == "unparsable"


def test_an_endless_comparison_is_killed_and_the_next_one_answered():
    config = VerifierConfig(timeout=0.5)
    pool = shared_pool(config.workers)
    verify("math", "x", "\\boxed{x}")
    before = pool.workers[0].process.pid
    assert verify("math", "x^2", "\\boxed{9^{9^{9^9}}}", config).status == "timeout"
    assert verify("math", "x^2", "\\boxed{x \\cdot x}").value == 1.0
    assert pool.workers[0].process.pid != before


def test_a_dead_process_is_replaced():
    verify("math", "x", "\\boxed{x}")
    worker = shared_pool(1).workers[0]
    worker.process.kill()
    worker.process.wait()
    assert verify("math", "2y", "\\boxed{y+y}").value == 1.0


def test_a_process_of_untrusted_text_gets_no_keys(monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", "secret")
    shared_pool.cache_clear()
    verify("math", "x", "\\boxed{x}")
    pid = shared_pool(1).workers[0].process.pid
    with open(f"/proc/{pid}/environ") as file:
        assert "secret" not in file.read()
    shared_pool(1).close()


def test_many_are_answered_in_order_by_several_workers():
    requests = [Request("math", "x+1", f"\\boxed{{x+{i}}}") for i in range(4)]
    scores = verify_all(requests, VerifierConfig(workers=2))
    assert [score.value for score in scores] == [0.0, 1.0, 0.0, 0.0]
    shared_pool(2).close()


def test_an_unknown_verifier_is_named_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'number'"):
        verify("numbr", "7", "7")


def test_every_verifier_of_the_table_is_there():
    for name in VERIFIERS:
        assert callable(verifier(name))


def test_what_raises_inside_a_verifier_is_a_failure_and_not_a_wrong_answer(monkeypatch):
    monkeypatch.setattr("sail_train.rewards.numeric.digits", lambda text: 1 / 0)
    score = verify("grid", "1", "1")
    assert score.failed and "ZeroDivisionError" in score.detail


def test_part_of_a_grid_is_measured_by_place():
    assert partial("grid", "1234", "<think>9</think>1 2 9 4") == 0.75
    assert partial("grid", "1234", "12") == 0.5
    assert partial("grid", "12", "1234") == 0.5
    assert partial("number", "1", "1") is None
