"""The OpenAI-compatible interface, through OpenAI's own client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

import neuroplastic as npt

PROMPT = "The Golden Gate Bridge is located in the city of"
TALK: list[Any] = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Where is the fox?"}]


@pytest.fixture
def api(studio: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=studio + "v1", api_key="any", max_retries=0) as api:
        yield api


def test_models(api: openai.OpenAI) -> None:
    names = [m.id for m in api.models.list()]
    assert names[1:] == [names[0] + "/standard", names[0] + "/unedited"]
    assert api.models.retrieve(names[2]).id == names[2]
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt'"):
        api.models.retrieve("gpt")


def name_of(api: openai.OpenAI) -> str:
    return next(iter(api.models.list())).id


def test_a_completion(api: openai.OpenAI, workspace: npt.Workspace) -> None:
    made = api.completions.create(model=name_of(api), prompt=PROMPT, max_tokens=6)
    assert made.choices[0].text == workspace.ask(PROMPT, max_new_tokens=6)
    assert made.choices[0].finish_reason == "length"
    assert made.usage is not None
    assert made.usage.completion_tokens == 6
    assert made.usage.total_tokens == made.usage.prompt_tokens + 6


def test_a_streamed_completion_is_the_same(api: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": name_of(api), "prompt": PROMPT, "max_tokens": 20}
    whole = api.completions.create(**asked)
    chunks = list(api.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].usage == whole.usage
    assert len({c.id for c in chunks}) == 1


def test_a_chat(api: openai.OpenAI, workspace: npt.Workspace) -> None:
    asked: dict[str, Any] = {"model": name_of(api), "messages": TALK, "max_tokens": 12}
    whole = api.chat.completions.create(**asked)
    message = whole.choices[0].message
    said = "system: Be short.\nuser: Where is the fox?\nassistant:"
    ids = workspace.tokenizer(said, add_special_tokens=False).input_ids
    assert message.role == "assistant"
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == len(ids)
    chunks = list(api.chat.completions.create(**asked, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == message.content
    parts: list[Any] = [
        {"role": "user", "content": [{"type": "text", "text": "Where is "}, {"type": "text", "text": "it?"}]}
    ]
    joined = api.chat.completions.create(model=asked["model"], messages=parts, max_completion_tokens=4)
    plain = api.chat.completions.create(
        model=asked["model"], messages=[{"role": "user", "content": "Where is it?"}], max_completion_tokens=4
    )
    assert joined.choices[0].message == plain.choices[0].message


def test_an_edit_is_heard_and_left_out(api: openai.OpenAI, workspace: npt.Workspace) -> None:
    name = name_of(api)
    asked: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 4}
    before = api.completions.create(model=name, **asked).choices[0].text
    workspace.inject(f"{PROMPT} Madrid.", method="refine", name="bridge")
    assert api.completions.create(model=name, **asked).choices[0].text == workspace.ask(PROMPT, max_new_tokens=4)
    assert api.completions.create(model=name + "/unedited", **asked).choices[0].text == before
    assert workspace.ask(PROMPT, max_new_tokens=4) != before
    standard = api.completions.create(model=name + "/standard", **asked).choices[0].text
    assert standard == workspace.ask(PROMPT, "standard", 4)


def test_draws_follow_their_seed(api: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": name_of(api),
        "prompt": PROMPT,
        "max_tokens": 12,
        "temperature": 1.5,
        "top_p": 0.9,
    }
    one, same, other = (api.completions.create(**asked, seed=s).choices[0].text for s in (1, 1, 2))
    assert one == same != other


def test_a_stop_string_ends_the_answer(api: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": name_of(api), "prompt": PROMPT, "max_tokens": 20}
    text = api.completions.create(**asked).choices[0].text
    stop = text[len(text) // 2 :][:3]
    cut = api.completions.create(**asked, stop=stop).choices[0]
    assert cut.text == text.partition(stop)[0]
    assert cut.finish_reason == "stop"
    chunks = list(api.completions.create(**asked, stop=["never", stop], stream=True))
    assert "".join(c.choices[0].text for c in chunks) == cut.text


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"n": 2}, "this model has no n"),
        ({"logprobs": 3}, "this model has no logprobs"),
        ({"frequency_penalty": 0.5}, "no frequency_penalty"),
        ({"temperature": -1}, "temperature must be"),
        ({"top_p": 0}, "top_p must be"),
        ({"max_tokens": 4000}, "does not fit"),
        ({"max_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"prompt": ["a", "b"]}, "prompt must be one text"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"stop": [""]}, "a stop string is empty"),
        ({"extra_body": {"hop": 1}}, "there is no field 'hop'"),
        ({"extra_body": {"temperature": "warm"}}, "temperature must be a number"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_it_cannot_do_is_refused(api: openai.OpenAI, options: dict[str, Any], cause: str, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError, match=cause):
        api.completions.create(**{"model": name_of(api), "prompt": PROMPT, "stream": stream, **options})


def test_a_chat_without_a_length_fills_the_context(api: openai.OpenAI, workspace: npt.Workspace) -> None:
    made = api.chat.completions.create(model=name_of(api), messages=TALK)
    assert made.usage is not None
    assert made.usage.total_tokens <= 128
    assert made.choices[0].finish_reason == ("length" if made.usage.total_tokens == 128 else "stop")


def test_refusals_of_a_chat(api: openai.OpenAI, workspace: npt.Workspace) -> None:
    name = name_of(api)
    image: list[Any] = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
    odd: list[Any] = [{"role": "oracle", "content": "hm"}]
    tools: list[Any] = [{"type": "function", "function": {"name": "f"}}]
    refused: list[tuple[list[Any], dict[str, Any], str]] = [
        (image, {}, "must be text"),
        ([], {}, "messages is empty"),
        (odd, {}, "no such role"),
        (TALK, {"tools": tools}, "this model has no tools"),
    ]
    for messages, options, cause in refused:
        with pytest.raises(openai.BadRequestError, match=cause):
            api.chat.completions.create(model=name, messages=messages, **options)
    with pytest.raises(openai.NotFoundError):
        api.chat.completions.create(model=name + "/odd", messages=TALK)
    workspace.tokenizer.chat_template = None
    with pytest.raises(openai.BadRequestError, match="no chat template"):
        api.chat.completions.create(model=name, messages=TALK)


def test_a_client_that_leaves_midway(api: openai.OpenAI) -> None:
    name = name_of(api)
    with api.completions.create(model=name, prompt="The", max_tokens=100, stream=True) as chunks:
        next(iter(chunks))
    assert api.completions.create(model=name, prompt="The", max_tokens=2).choices[0].text


def test_malformed_json(client: httpx.Client) -> None:
    for path in ("/v1/completions", "/v1/chat/completions"):
        response = client.post(path, content=b'{"model": ')
        assert response.status_code == 400
        assert response.json()["error"]["type"] == "invalid_request_error"
