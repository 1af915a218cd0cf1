"""The OpenAI-compatible interface, through OpenAI's own client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

import neuroplastic as npt

PROMPT = "The Golden Gate Bridge is located in the city of"
TALK: list[Any] = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Where is the fox?"}]
CALLS: list[Any] = [
    {"id": "call_1", "type": "function", "function": {"name": "find", "arguments": '{"what": "fox"}'}},
]
TOOLS_TEMPLATE = (
    "{% if brief is defined %}[{{ brief }}] {% endif %}{% if reasoning_effort is defined %}({{ reasoning_effort }}) "
    "{% endif %}{% for m in messages %}{{ m.role }}{% if m.name %} {{ m.name }}{% endif %}: {{ m.content | trim }}"
    "{% for c in m.tool_calls or [] %}<{{ c.function.name }} {{ c.function.arguments.what }}>{% endfor %}"
    "{% if m.role == 'tool' %} for {{ m.tool_call_id }}{% endif %}{{ '\\n' }}{% endfor %}"
)


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
        ({"logprobs": 6}, "logprobs must be from 0 to 5"),
        ({"logprobs": True}, "logprobs must be a whole number"),
        ({"presence_penalty": 0.1}, "no presence_penalty"),
        ({"logit_bias": {"1": 2}}, "no logit_bias"),
        ({"seed": -2}, "seed must be"),
        ({"max_tokens": 2.5}, "max_tokens must be a whole number"),
        ({"stream_options": {"continuous_usage_stats": True}}, "no continuous_usage_stats in stream_options"),
        ({"extra_body": {"top_k": -3}}, "top_k must be"),
        ({"extra_body": {"min_p": 1.5}}, "min_p must be"),
        ({"extra_body": {"repetition_penalty": 1.1}}, "no repetition_penalty"),
        ({"extra_body": {"chat_template_kwargs": {"a": 1}}}, "no chat_template_kwargs"),
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
        (image, {}, 'must be text; this model reads no "image_url"'),
        ([{"content": "hm"}], {}, "a message has no role"),
        ([{"role": "", "content": "hm"}], {}, "a message has no role"),
        ([{"role": 7, "content": "hm"}], {}, "a role must be text, not 7"),
        ([{"role": "user", "content": None}], {}, "must be text, not null"),
        ([{"role": "user"}], {}, "must be text, not null"),
        ([{"role": "user", "content": ["a"]}], {}, "must be an object"),
        ([{"role": "user", "content": [{"type": "text", "text": "a", "colour": 1}]}], {}, "does not read 'colour'"),
        ([{"role": "user", "content": "a", "name": "Ann"}], {}, "leaves out 'name' of message 1"),
        ([*TALK, {"role": "assistant", "content": None, "tool_calls": CALLS}], {}, "leaves out 'tool_calls'"),
        ([*TALK, {"role": "assistant", "tool_calls": [{"function": {"arguments": "{"}}]}], {}, "no JSON object"),
        (TALK, {"top_logprobs": 2}, "top_logprobs goes with logprobs"),
        (TALK, {"logprobs": True, "top_logprobs": 21}, "top_logprobs must be from 0 to 20"),
        (TALK, {"functions": [{"name": "f"}]}, "no functions"),
        (TALK, {"tool_choice": "required"}, "no tool_choice"),
        (TALK, {"response_format": {"type": "json_object"}}, "no response_format"),
        (TALK, {"extra_body": {"chat_template_kwargs": {"tokenize": True}}}, "'tokenize' is no variable"),
        ([{"role": "user", "content": "the fox " * 300}], {}, "tokens; it does not fit into the model's 128"),
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


def prompt_tokens(api: openai.OpenAI, messages: list[Any], **options: Any) -> int:
    made = api.chat.completions.create(model=name_of(api), messages=messages, max_tokens=1, **options)
    assert made.usage is not None
    return made.usage.prompt_tokens


def test_what_a_message_says_beside_its_content_reaches_the_template(
    api: openai.OpenAI, workspace: npt.Workspace
) -> None:
    workspace.tokenizer.chat_template = TOOLS_TEMPLATE
    messages: list[Any] = [
        {"role": "user", "name": "Ann", "content": "Where?"},
        {"role": "assistant", "content": None, "tool_calls": CALLS, "refusal": None, "annotations": [], "audio": None},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "There", "cache_control": {}}]},
    ]
    read = "user Ann: Where?\nassistant: <find fox>\ntool: There for call_1\n"

    def tokens(text: str) -> int:
        return len(workspace.tokenizer(text, add_special_tokens=False).input_ids)

    assert prompt_tokens(api, messages) == tokens(read)
    for options, before in (
        ({"extra_body": {"chat_template_kwargs": {"brief": "very"}}}, "[very] "),
        ({"reasoning_effort": "low"}, "(low) "),
        ({"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}, ""),
    ):
        assert prompt_tokens(api, messages, **options) == tokens(before + read)
    said = workspace.chat_tokens(
        [{"role": "user", "content": " Where? "}, {"role": "assistant", "content": ""}], {"brief": "very"}
    )
    assert workspace.tokenizer.decode(said) == "[very] user: Where?\nassistant: \n"
    with pytest.raises(openai.BadRequestError, match="leaves out 'tool_call_id' of message 1"):
        prompt_tokens(api, [{"role": "user", "content": "a", "tool_call_id": "call_1"}])


def test_a_template_that_leaves_out_a_message_or_fails_is_named(api: openai.OpenAI, workspace: npt.Workspace) -> None:
    workspace.tokenizer.chat_template = "{% for m in messages if m.role != 'system' %}{{ m.content }}\n{% endfor %}"
    with pytest.raises(openai.BadRequestError, match="leaves out 'content' of message 1, of the role 'system'"):
        prompt_tokens(api, TALK)
    assert prompt_tokens(api, TALK[1:]) > 0
    workspace.tokenizer.chat_template = (
        "{{ messages[0].content }}{% if messages | length != 2 %}{{ raise_exception('two') }}{% endif %}"
    )
    with pytest.raises(openai.BadRequestError, match="leaves out 'content' of message 2, of the role 'user'"):
        prompt_tokens(api, TALK)
    first = "{% if 'short' not in messages[0].content %}{{ raise_exception('be short') }}{% endif %}"
    workspace.tokenizer.chat_template = first + "{{ messages[1].content }}"  # it insists on what it does not show
    assert prompt_tokens(api, TALK) > 0
    workspace.tokenizer.chat_template = "{{ messages[0].content + 1 }}"
    with pytest.raises(openai.BadRequestError, match="does not take these messages: TypeError"):
        prompt_tokens(api, TALK)


DEFAULTS: dict[str, Any] = {
    **{"temperature": 1e-8, "seed": -1, "max_tokens": 6.0, "n": 1, "presence_penalty": 0, "frequency_penalty": 0.0},
    **{"logit_bias": {}, "user": "Ann", "stop": None},
}
EXTRA: dict[str, Any] = {
    **{"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "repeat_penalty": 1, "reasoning_effort": "medium"},
    **{"tools": [], "functions": [], "tool_choice": "auto", "function_call": "none", "parallel_tool_calls": True},
    **{"store": False, "metadata": {"a": "b"}, "service_tier": "auto", "response_format": {"type": "text"}},
    **{"stop_token_ids": [], "ignore_eos": False, "skip_special_tokens": True, "length_penalty": 1.0, "min_tokens": 0},
    **{"cache_prompt": True, "top_logprobs": 0, "logprobs": False, "chat_template_kwargs": {}},
    **{"stream_options": {"include_usage": False, "include_obfuscation": False}},
}


def test_what_clients_send_by_default_changes_nothing(api: openai.OpenAI, workspace: npt.Workspace) -> None:
    name = name_of(api)
    made = api.completions.create(model=name, prompt=PROMPT, **DEFAULTS, extra_body=EXTRA)
    assert made.choices[0].text == workspace.ask(PROMPT, max_new_tokens=6)
    assert made.choices[0].logprobs is None
    plain = api.chat.completions.create(model=name, messages=TALK, max_tokens=6)
    asked = api.chat.completions.create(model=name, messages=TALK, **DEFAULTS, extra_body=EXTRA)
    assert asked.choices == plain.choices
    assert asked.usage == plain.usage
    unlimited = api.chat.completions.create(model=name, messages=TALK, max_tokens=-1)
    assert unlimited.choices == api.chat.completions.create(model=name, messages=TALK).choices


def test_top_k_and_min_p_narrow_the_draws(api: openai.OpenAI, workspace: npt.Workspace) -> None:
    asked: dict[str, Any] = {"model": name_of(api), "prompt": PROMPT, "max_tokens": 12, "temperature": 5.0, "seed": 1}
    greedy = workspace.ask(PROMPT, max_new_tokens=12)
    assert api.completions.create(**asked).choices[0].text != greedy
    for one in ({"top_k": 1}, {"min_p": 1.0}):
        assert api.completions.create(**asked, extra_body=one).choices[0].text == greedy
    talk: dict[str, Any] = {"model": asked["model"], "messages": TALK, "max_tokens": 12, "temperature": 5.0, "seed": 1}
    three = {"top_k": 3}
    made = api.chat.completions.create(**talk, extra_body=three, logprobs=True, top_logprobs=3).choices[0].logprobs
    assert made is not None
    tokens = made.content or []
    assert all(t.logprob >= t.top_logprobs[2].logprob for t in tokens)
    assert any(t.logprob < t.top_logprobs[0].logprob for t in tokens)


@pytest.mark.parametrize("alternatives", [0, 2])
def test_log_probabilities_of_a_completion(api: openai.OpenAI, workspace: npt.Workspace, alternatives: int) -> None:
    asked: dict[str, Any] = {"model": name_of(api), "prompt": PROMPT, "max_tokens": 6, "logprobs": alternatives}
    choice = api.completions.create(**asked).choices[0]
    found = choice.logprobs
    assert found is not None
    assert found.tokens is not None
    assert found.token_logprobs is not None
    assert found.top_logprobs is not None
    assert "".join(found.tokens) == choice.text
    assert found.text_offset is not None
    for token, start in zip(found.tokens, found.text_offset, strict=True):
        assert "�" in token or choice.text[start:].startswith(token)
    first = workspace.next_token(PROMPT, "dynamic").log()
    assert found.token_logprobs[0] == pytest.approx(first.max().item(), abs=1e-3)
    likeliest = first.topk(max(1, alternatives)).values.tolist()
    assert sorted(found.top_logprobs[0].values(), reverse=True) == pytest.approx(likeliest, abs=1e-3)
    for token, logprob, top in zip(found.tokens, found.token_logprobs, found.top_logprobs, strict=True):
        assert top[token] == logprob
        assert len(top) <= max(1, alternatives)
    chunks = [c.choices[0].logprobs for c in api.completions.create(**asked, stream=True) if c.choices[0].logprobs]
    assert [t for c in chunks for t in c.tokens or ()] == found.tokens
    assert [p for c in chunks for p in c.token_logprobs or ()] == found.token_logprobs
    assert [n for c in chunks for n in c.text_offset or ()] == found.text_offset


def test_log_probabilities_of_a_chat(api: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": name_of(api), "messages": TALK, "max_tokens": 6, "logprobs": True}
    for alternatives in (0, 3):
        choice = api.chat.completions.create(**asked, top_logprobs=alternatives).choices[0]
        assert choice.logprobs is not None
        content = choice.logprobs.content
        assert content is not None
        assert "".join(t.token for t in content) == choice.message.content
        for token in content:
            assert len(token.top_logprobs) == alternatives
            assert token.bytes is None or bytes(token.bytes).decode() == token.token
            assert all(token.logprob >= t.logprob for t in token.top_logprobs[:1])
        chunks = [c.choices[0] for c in api.chat.completions.create(**asked, top_logprobs=alternatives, stream=True)]
        assert [t for c in chunks if c.logprobs for t in c.logprobs.content or ()] == content
    stop = choice.message.content[2:4] if choice.message.content else ""
    cut = api.chat.completions.create(**asked, stop=stop).choices[0]
    assert cut.logprobs is not None
    shown = "".join(t.token for t in cut.logprobs.content or ())
    assert shown.startswith(cut.message.content or "")
    assert stop not in shown or shown.index(stop) == len(cut.message.content or "")


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_line_separators_are_escaped_in_streams(
    api: openai.OpenAI,
    client: httpx.Client,
    workspace: npt.Workspace,
    monkeypatch: pytest.MonkeyPatch,
    separator: str,
) -> None:
    """Clients that split lines at more than a newline, as httpx does, read events whole."""
    asked: dict[str, Any] = {"model": name_of(api), "messages": TALK, "max_tokens": 3}
    plain = api.chat.completions.create(**asked).choices[0].message.content or ""
    said = plain.replace(plain[0], separator)  # a vocabulary in which the model's first character is a separator
    decode = type(workspace.tokenizer).decode
    odd = lambda *a, **k: decode(*a, **k).replace(plain[0], separator)  # noqa: E731
    monkeypatch.setattr(type(workspace.tokenizer), "decode", odd)
    with client.stream("POST", "/v1/chat/completions", json={**asked, "stream": True}) as response:
        lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    pieces = [json.loads(line.removeprefix("data: "))["choices"][0]["delta"] for line in lines[:-1]]
    assert "".join(p.get("content", "") for p in pieces) == said
    chunks = api.chat.completions.create(**asked, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == said
