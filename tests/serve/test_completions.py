"""The chat endpoint over real HTTP: what is said, in OpenAI's form, whole and streamed, alone and together."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from serve_tiny import ALPHABET, ANSWER, LETTERS, THOUGHT, Served, about, about_picture, data_url, picture

from sail_train.generate.generator import Generator
from sail_train.model.build import load_model
from sail_train.processor.processor import load_processor
from sail_train.types import Conversation, Message, Part, Sampling


def chunks(served: Served, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of a stream, whose last is [DONE]."""
    with served.client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines) and lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_a_thought_and_an_answer_come_apart(served: Served) -> None:
    reply = served.ask(about_picture(think="on", model="speaker")).json()
    assert reply["object"] == "chat.completion" and reply["model"] == "speaker" and reply["id"].startswith("chatcmpl-")
    (choice,) = reply["choices"]
    assert choice["message"] == {
        "role": "assistant", "content": ANSWER, "reasoning_content": THOUGHT, "refusal": None,
    }  # fmt: skip
    assert choice["finish_reason"] == "stop" and choice["index"] == 0
    usage = reply["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert 0 < usage["completion_tokens_details"]["reasoning_tokens"] < usage["completion_tokens"]


@pytest.mark.parametrize(
    "fields",
    [
        {"think": "off"},
        {"think": "auto"},
        {},
        {"chat_template_kwargs": {"think": "off"}},
        {"chat_template_kwargs": {"enable_thinking": False}},
    ],
)
def test_a_direct_answer_has_no_thought(served: Served, fields: dict[str, Any]) -> None:
    reply = served.ask(about_picture(**fields)).json()
    message = reply["choices"][0]["message"]
    assert message["content"] == ANSWER and message["reasoning_content"] is None
    assert reply["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0


def test_the_template_is_asked_to_think_in_three_ways(served: Served) -> None:
    for fields in ({"think": "on"}, {"chat_template_kwargs": {"think": "on"}},
                   {"chat_template_kwargs": {"enable_thinking": True}}):  # fmt: skip
        assert served.ask(about_picture(**fields)).json()["choices"][0]["message"]["reasoning_content"] == THOUGHT


def test_a_stream_is_the_whole_answer_in_pieces(served: Served) -> None:
    events = chunks(served, about_picture(think="on", stream_options={"include_usage": True}))
    whole = served.ask(about_picture(think="on")).json()
    *pieces, last = events
    assert last["choices"] == [] and last["usage"] == whole["usage"]
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert len({(event["id"], event["created"], event["model"]) for event in events}) == 1
    deltas = [event["choices"][0]["delta"] for event in pieces]
    assert deltas[0] == {"role": "assistant", "content": ""} and deltas[-1] == {}
    thoughts = [delta["reasoning_content"] for delta in deltas if "reasoning_content" in delta]
    answers = [delta["content"] for delta in deltas[1:] if "content" in delta]
    assert "".join(thoughts) == THOUGHT and len(thoughts) > 3
    assert "".join(answers) == ANSWER and len(answers) > 3 and "\ufffd" not in "".join(answers)
    assert [event["choices"][0]["finish_reason"] for event in pieces] == [None] * (len(pieces) - 1) + ["stop"]


def test_without_include_usage_no_chunk_is_without_choice(served: Served) -> None:
    assert all(event["choices"] for event in chunks(served, about()))


def test_a_stream_comes_as_it_is_written(serve: Callable[..., Served]) -> None:
    served = serve()
    served.slow(0.02)
    times = []
    with served.client.stream("POST", "/v1/chat/completions", json=about(stream=True)) as response:
        for line in response.iter_lines():
            if line:
                times.append(time.monotonic())
    assert times[-1] - times[0] > 0.3


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_a_limit_cuts_the_answer_and_says_so(served: Served, field: str) -> None:
    reply = served.ask(about(**{field: 9})).json()
    (choice,) = reply["choices"]
    assert choice["finish_reason"] == "length" and reply["usage"]["completion_tokens"] == 9
    assert LETTERS.startswith(choice["message"]["content"]) and choice["message"]["content"]
    assert chunks(served, about(**{field: 9}))[-1]["choices"][0]["finish_reason"] == "length"


def test_a_thought_that_is_cut_is_a_thought(served: Served) -> None:
    message = served.ask(about_picture(think="on", max_tokens=6)).json()["choices"][0]["message"]
    assert message["content"] == "" and THOUGHT.startswith(message["reasoning_content"])


@pytest.mark.parametrize("stop", ["g h", ["x", "g h", "i"]])
def test_a_stop_string_ends_the_answer_before_it(served: Served, stop: Any) -> None:
    expected = LETTERS.partition("g h")[0]
    reply = served.ask(about(stop=stop)).json()
    assert reply["choices"][0]["message"]["content"] == expected and reply["choices"][0]["finish_reason"] == "stop"
    assert reply["usage"]["completion_tokens"] < 30
    events = chunks(served, about(stop=stop))
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == expected
    assert events[-1]["choices"][0]["finish_reason"] == "stop"


def test_a_stop_string_in_a_thought_ends_nothing(served: Served) -> None:
    message = served.ask(about_picture(think="on", stop="square")).json()["choices"][0]["message"]
    assert message["content"] == ANSWER and message["reasoning_content"] == THOUGHT


def test_a_seed_repeats_an_answer_and_none_does_not(served: Served) -> None:
    def say(**fields: Any) -> list[str]:
        body = {**about("b a c?", max_tokens=24), "temperature": 2.0, **fields}
        messages = [choice["message"] for choice in served.ask(body).json()["choices"]]
        return [f"{message['reasoning_content']} {message['content']}" for message in messages]

    assert say(seed=7) == say(seed=7)
    assert len({say(seed=seed)[0] for seed in range(5)}) > 1 and len({say()[0] for _ in range(5)}) > 1
    first, second, third = say(seed=7, n=3)
    assert [first] == say(seed=7) and len({first, second, third}) > 1


def test_several_answers_stream_under_their_numbers(served: Served) -> None:
    events = chunks(served, about(n=3, max_tokens=12))
    for index in range(3):
        own = [event["choices"][0] for event in events if event["choices"][0]["index"] == index]
        assert own[0]["delta"]["role"] == "assistant" and own[-1]["finish_reason"] == "length"
        assert LETTERS.startswith("".join(choice["delta"].get("content", "") for choice in own))


def test_the_answer_is_that_of_the_generator(served: Served, folder: Path) -> None:
    """One code path: the same prompt and seed through `Generator` give the same text."""
    processor = load_processor(folder)
    generator = Generator(
        load_model(folder), stop_token_ids=processor.stop_token_ids, pad_token_id=processor.token_ids["pad"],
        banned_token_ids=(processor.image_token_id,),
    )  # fmt: skip
    message = Message(role="user", content=(Part(type="image"), Part(type="text", text="And now?")))
    asked = Conversation(key="k", source="s", messages=(message,), images=(picture(),))
    prompt = processor.prompt(asked, uid="chat", think="on")
    ((drawn,),) = generator.generate([prompt], Sampling(max_new_tokens=20, temperature=1.5, top_p=0.9, seed=3))
    body = {**about_picture("And now?", think="on", seed=3, top_p=0.9, max_tokens=20), "temperature": 1.5}
    reply = served.ask(body).json()
    said = reply["choices"][0]["message"]
    text = processor.decode(drawn.token_ids)
    assert said["content"] in text and (said["reasoning_content"] or "") in text
    assert said["content"] or said["reasoning_content"]
    assert reply["usage"]["completion_tokens"] == len(drawn.token_ids)
    assert reply["usage"]["prompt_tokens"] == len(prompt.input_ids)


def test_a_conversation_goes_on(served: Served) -> None:
    """Roles, part lists and plain texts, images of earlier turns; a thought sent back is not shown to the model."""
    first = about_picture()["messages"]
    history = [
        {"role": "developer", "content": "Be brief."},
        *first,
        {"role": "assistant", "content": ANSWER},
        {"role": "user", "content": [{"type": "text", "text": ALPHABET}]},
    ]
    plain = served.ask({"messages": history, "temperature": 0, "max_tokens": 5}).json()
    history[2]["content"] = f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}"
    thought = served.ask({"messages": history, "temperature": 0, "max_tokens": 5}).json()
    assert plain["usage"]["prompt_tokens"] == thought["usage"]["prompt_tokens"] > 40


def test_jpeg_webp_and_a_bare_url_are_read(served: Served) -> None:
    for kind in ("JPEG", "WEBP"):
        url = data_url(picture(kind=kind), kind.lower())
        content = [{"type": "image_url", "image_url": url}, {"type": "text", "text": "Hm?"}]
        reply = served.ask({"messages": [{"role": "user", "content": content}], "max_tokens": 2})
        assert reply.status_code == 200, reply.text


def test_requests_of_many_kinds_are_written_together_and_answered_as_alone(serve: Callable[..., Served]) -> None:
    served = serve()
    bodies = [
        about(), about_picture(think="on"), about(max_tokens=7), about_picture(think="off"), about(n=2, max_tokens=3),
        {**about("b a?", seed=5, max_tokens=20), "temperature": 1},
    ]  # fmt: skip
    alone = [served.ask(body).json() for body in bodies]
    served.slow(0.01)
    most = []
    with ThreadPoolExecutor(len(bodies)) as pool:
        asked = [pool.submit(httpx.post, f"{served.url}v1/chat/completions", json=body, timeout=30) for body in bodies]
        while not all(future.done() for future in asked):
            most.append(served.client.get("/health").json()["active"])
            time.sleep(0.005)
    assert max(most) > 1
    for future, expected in zip(asked, alone, strict=True):
        reply = future.result().json()
        assert reply["choices"] == expected["choices"] and reply["usage"] == expected["usage"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_reader_who_leaves_frees_the_row(serve: Callable[..., Served], stream: bool) -> None:
    served = serve(max_batch=1)
    served.slow(0.2)  # the whole answer would take some ten seconds
    data = json.dumps(about(stream=stream, n=1)).encode()
    with socket.create_connection(("127.0.0.1", served.server.server_port)) as line:
        line.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(data), data)
        )
        served.until(lambda health: health["active"] == 1)
    served.until(lambda health: health["active"] == 0, seconds=3)
    assert served.client.get("/health").json()["active"] == 0, "long before the answer would have ended"


def test_a_reader_who_leaves_the_queue_is_not_answered(serve: Callable[..., Served]) -> None:
    served = serve(max_batch=1)
    served.slow(0.1)
    stop = threading.Event()

    def hold() -> None:
        with httpx.stream("POST", f"{served.url}v1/chat/completions", json=about(stream=True), timeout=30) as response:
            for _ in response.iter_lines():
                if stop.is_set():
                    return

    holder = threading.Thread(target=hold)
    holder.start()
    served.until(lambda health: health["active"] == 1)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{served.url}v1/chat/completions", json=about(), timeout=0.3)
    served.until(lambda health: health["waiting"] == 0, seconds=2)
    stop.set()
    holder.join()


def test_a_full_queue_is_told_and_empties(serve: Callable[..., Served]) -> None:
    served = serve(max_batch=1, queue=1)
    served.slow(0.05)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(served.ask, about(max_tokens=25))
        served.until(lambda health: health["active"] == 1)
        second = pool.submit(served.ask, about(max_tokens=3))
        served.until(lambda health: health["waiting"] == 1)
        refused = served.ask(about())
        assert refused.status_code == 503 and refused.headers["retry-after"]
        assert refused.json()["error"]["code"] == "overloaded"
        assert first.result().status_code == second.result().status_code == 200


def test_a_model_that_fails_fails_its_requests_and_no_other(serve: Callable[..., Served]) -> None:
    served = serve()
    model = served.service.worker._session.model.language_model
    calls = []

    def fail(*_: Any) -> None:
        calls.append(1)
        if len(calls) in (1, 6):
            raise RuntimeError("/secret/path")

    model.register_forward_pre_hook(fail)
    first = served.ask(about())
    assert first.status_code == 503 and first.json()["error"]["code"] == "model_failed"
    assert "secret" not in first.text and "RuntimeError" in first.text
    with served.client.stream("POST", "/v1/chat/completions", json=about(stream=True)) as response:
        lines = [line for line in response.iter_lines() if line]
    assert response.status_code == 200
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["type"] == "server_error"
    assert served.ask(about(max_tokens=3)).status_code == 200


def test_stopping_tells_those_who_are_being_answered(serve: Callable[..., Served]) -> None:
    served = serve(max_batch=1)
    served.slow(0.05)
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(served.ask, about()) for _ in range(2)]
        served.until(lambda health: health["active"] == 1 and health["waiting"] == 1)
        served.service.worker.stop()
        for reply in (future.result() for future in asked):
            assert reply.status_code == 503 and "stops" in reply.json()["error"]["message"]
    assert served.server.answering.wait(5)
    assert served.client.get("/health").status_code == 503
    assert served.ask(about()).status_code == 503
