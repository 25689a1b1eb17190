"""Endpoints: what a request says in each dialect."""

from __future__ import annotations

import json

import numpy as np
import pytest

from andes_opt.qoe import QoETarget
from experiments.client.endpoint import Endpoint
from experiments.configuration.compose import groups, load_choice


def body(prompt_tokens=5, **options):
    """The body that an endpoint makes for a request."""
    rng = np.random.default_rng([0, 3])
    return Endpoint(**options).request_body("m", rng, prompt_tokens, 7, QoETarget(0.5, 4.0))


def test_vllm_gets_exact_lengths_targets_and_counts():
    """The default dialect asks vLLM for all it has."""
    request = body(body={"temperature": 0.0})
    prompt = request.pop("prompt")
    assert len(prompt) == 5
    assert all(100 <= token < 1100 for token in prompt)
    assert request == {
        "model": "m",
        "stream": True,
        "temperature": 0.0,
        "max_tokens": 7,
        "ignore_eos": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "vllm_xargs": {"ttft_s": 0.5, "tds": 4.0},
    }


def test_other_servers_get_nothing_they_may_not_know():
    """The portable dialect has OpenAI's fields only."""
    request = body(
        api="chat",
        token_ids=None,
        reply_length="at_most",
        send_targets=False,
        token_counts="last_event",
    )
    assert set(request) == {"model", "stream", "messages", "max_tokens", "stream_options"}
    assert request["stream_options"] == {"include_usage": True}
    message = request["messages"][0]
    assert message["role"] == "user"
    assert len(message["content"].split()) == 5


def test_the_length_by_either_name():
    """OpenAI's newer models refuse max_tokens and want max_completion_tokens."""
    request = body(length_field="max_completion_tokens")
    assert request["max_completion_tokens"] == 7
    assert "max_tokens" not in request


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://127.0.0.1:8000/v1", True),
        ("http://localhost:8000/v1", True),
        ("http://[::1]:8000/v1", True),
        ("http://0.0.0.0:8000/v1", True),
        ("https://api.example/v1", False),
        ("http://127.example/v1", False),
    ],
)
def test_which_servers_are_on_this_machine(url, local):
    """Only those are never reached through a proxy."""
    assert Endpoint(url=url).is_local is local


def test_the_other_options():
    """min_tokens sets a floor, token_counts=none asks for nothing, words go to completions."""
    request = body(reply_length="min_tokens", token_counts="none", token_ids=None)
    assert request["min_tokens"] == request["max_tokens"] == 7
    assert "stream_options" not in request
    assert len(request["prompt"].split()) == 5


def test_prompts_depend_on_the_source_alone():
    """The same source of randomness gives the same prompt, another one another."""
    assert body(50)["prompt"] == body(50)["prompt"]
    other = Endpoint().request_body("m", np.random.default_rng(9), 50, 7, QoETarget(0.5, 4.0))
    assert other["prompt"] != body(50)["prompt"]


def test_the_key_comes_from_the_environment_only(monkeypatch):
    """The API key goes into a header if the variable is set, and nowhere else."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert "Authorization" not in Endpoint().headers()
    monkeypatch.setenv("MY_KEY", "secret")
    endpoint = Endpoint(api_key_variable="MY_KEY")
    assert endpoint.headers()["Authorization"] == "Bearer secret"
    assert "secret" not in repr(endpoint)


def test_urls():
    """A slash at the end of the address does not matter."""
    for url in ("http://h:1/v1", "http://h:1/v1/"):
        assert Endpoint(url=url).stream_url == "http://h:1/v1/completions"
        assert Endpoint(url=url).models_url == "http://h:1/v1/models"


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        ({"url": "localhost:8000"}, ["localhost:8000", "http://"]),
        ({"api": "embeddings"}, ["embeddings", "completions, chat"]),
        ({"reply_length": "exact"}, ["exact", "ignore_eos"]),
        ({"token_counts": "all"}, ["all", "every_event"]),
        ({"api": "chat"}, ["chat", "token_ids"]),
        ({"token_ids": [7, 7]}, ["[7, 7]", "first, end"]),
        ({"token_ids": [7]}, ["[7]", "first, end"]),
    ],
)
def test_wrong_options_are_refused_in_a_sentence(options, fragments):
    """Each wrong option is quoted, with what would do."""
    with pytest.raises(ValueError, match=r"need|can't") as error:
        Endpoint(**options)
    assert all(fragment in str(error.value) for fragment in fragments)


@pytest.mark.parametrize("name", groups()["endpoint"])
def test_every_file_makes_an_endpoint_whose_requests_are_json(name):
    """Each choice of conf/endpoint instantiates, and its bodies can be sent."""
    from experiments.configuration.compose import build

    endpoint = build(load_choice("endpoint", name))
    request = endpoint.request_body("m", np.random.default_rng(0), 3, 2, QoETarget(1.0, 4.8))
    assert json.loads(json.dumps(request)) == request


def test_a_query_stays_behind_the_path():
    """``?api-version=1`` belongs to every address, after the path that is added."""
    endpoint = Endpoint(url="http://[::1]:8000/v1/?api-version=1")
    assert endpoint.stream_url == "http://[::1]:8000/v1/completions?api-version=1"
    assert endpoint.models_url == "http://[::1]:8000/v1/models?api-version=1"
    assert endpoint.is_local


@pytest.mark.parametrize(
    "url",
    ["http://", "http://[::1/v1", "http://a:b/v1", "http://a b/v1", "http://a\n/v1", "ftp://a"],
)
def test_what_is_no_address_is_refused(url):
    """In a sentence that shows it."""
    with pytest.raises(ValueError, match=r"^url = .* not understood"):
        Endpoint(url=url)


@pytest.mark.parametrize("key", ["secret\r", "secret\n", "sec\x00ret", "geheim\u00fc"])
def test_a_key_that_no_header_can_have_is_told_by_its_variable(key, monkeypatch):
    """The message names the variable, and never shows the key."""
    endpoint = Endpoint(api_key_variable="MY_KEY")
    monkeypatch.setattr("os.environ", {"MY_KEY": key})
    with pytest.raises(ValueError, match="MY_KEY") as refused:
        endpoint.headers()
    assert "sec" not in str(refused.value)
    assert "geheim" not in str(refused.value)


@pytest.mark.parametrize(("body", "choices"), [({}, 1), ({"n": 3}, 3), ({"n": None}, 1)])
def test_choices_are_those_of_the_body(body, choices):
    """A reply is complete when so many choices are."""
    assert Endpoint(body=body).choices == choices
