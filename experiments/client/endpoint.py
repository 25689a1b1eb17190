"""Where requests go and how they are put: any server that speaks OpenAI's streaming protocol."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from experiments.client.prompts import token_ids, words

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from andes_opt.qoe import QoETarget

APIS = {"completions": "/completions", "chat": "/chat/completions"}
REPLY_LENGTHS = ("ignore_eos", "min_tokens", "at_most")
TOKEN_COUNTS = ("every_event", "last_event", "none")
LENGTH_FIELDS = ("max_tokens", "max_completion_tokens")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """
    A server, and the dialect that it understands.

    Parameters
    ----------
    url
        Up to and with the version, ``http://127.0.0.1:8000/v1``.
    api
        ``"completions"`` or ``"chat"``.
    model
        Name of the model; None for the first one that the server lists.
    token_ids
        Range (first, end) that prompts are drawn from, sent as lists of token ids, which give
        prompts of exactly the wanted length; None for English words, about a token each.
    reply_length
        How replies get the wanted length: ``"ignore_eos"`` or ``"min_tokens"`` (vLLM: exactly
        so long), or ``"at_most"`` (any server: the model may end sooner).
    length_field
        What the server calls the most tokens of a reply: ``"max_tokens"``, or
        ``"max_completion_tokens"`` (OpenAI's newer models, which refuse the former).
    send_targets
        Whether to send each reader's target as ``vllm_xargs``.
    token_counts
        How the server tells how many tokens have come: ``"every_event"`` carries the count so
        far (vLLM's ``continuous_usage_stats``), only the ``"last_event"`` does (OpenAI's
        ``include_usage``), or ``"none"``.
    body
        More fields of every request, the temperature, say.
    api_key_variable
        Environment variable with the API key, if the server wants one.

    Raises
    ------
    ValueError
        If an option is unknown, or token ids are to be sent to the chat API.
    """

    url: str = "http://127.0.0.1:8000/v1"
    api: str = "completions"
    model: str | None = None
    token_ids: Sequence[int] | None = (100, 1100)
    reply_length: str = "ignore_eos"
    length_field: str = "max_tokens"
    send_targets: bool = True
    token_counts: str = "every_event"
    body: Mapping[str, Any] = field(default_factory=dict)
    api_key_variable: str = "OPENAI_API_KEY"

    def __post_init__(self) -> None:
        self._check_url()
        for name, choices in (
            ("api", tuple(APIS)),
            ("reply_length", REPLY_LENGTHS),
            ("length_field", LENGTH_FIELDS),
            ("token_counts", TOKEN_COUNTS),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} = {getattr(self, name)!r} not understood: need one of "
                    f"{', '.join(choices)}."
                )
        if self.token_ids is not None:
            if self.api == "chat":
                raise ValueError("token_ids can't go through api = 'chat': need token_ids = null.")
            if len(self.token_ids) != 2 or not 0 <= self.token_ids[0] < self.token_ids[1]:
                raise ValueError(
                    f"token_ids = {list(self.token_ids)} not understood: need [first, end]."
                )

    def _check_url(self) -> None:
        need = "need http:// or https://, a host, and no blanks"
        try:
            parts = urlsplit(self.url)
            valid = parts.scheme in ("http", "https") and bool(parts.hostname)
            valid &= parts.port != 0 and self.url.isprintable() and " " not in self.url
        except ValueError as error:  # brackets without an address, a port that is no number
            need, valid = str(error), False
        if not valid:
            raise ValueError(f"url = {self.url!r} not understood: {need}.")

    @property
    def stream_url(self) -> str:
        """Where requests are posted."""
        return self._below(APIS[self.api])

    @property
    def models_url(self) -> str:
        """Where the server lists its models."""
        return self._below("/models")

    def _below(self, path: str) -> str:
        """A path below the URL's own; what follows a ``?`` there stays at the end."""
        parts = urlsplit(self.url)
        return urlunsplit(parts._replace(path=parts.path.rstrip("/") + path))

    @property
    def choices(self) -> int:
        """How many choices are asked for: ``n`` of the body."""
        n = self.body.get("n")
        return n if isinstance(n, int) and n > 0 else 1

    @property
    def is_local(self) -> bool:
        """Whether its address says that the server is on this very machine."""
        host = urlsplit(self.url).hostname or ""
        with suppress(ValueError):  # a name, not an address
            address = ip_address(host)
            return address.is_loopback or address.is_unspecified
        return host == "localhost"

    def headers(self) -> dict[str, str]:
        """
        Headers of every request; the API key is never kept anywhere else.

        Raises
        ------
        ValueError
            If the API key can't be in a header; the sentence names its variable, not the key.
        """
        # Compressed streams come in lumps, whose times say nothing about tokens.
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        key = os.environ.get(self.api_key_variable)
        if key is not None and not (key.isprintable() and key.isascii()):
            raise ValueError(
                f"environment variable {self.api_key_variable} holds no API key: it has a line "
                "end or another character that no header can have; set it again without."
            )
        return headers | {"Authorization": f"Bearer {key}"} if key else headers

    def request_body(
        self,
        model: str,
        rng: np.random.Generator,
        prompt_tokens: int,
        output_tokens: int,
        target: QoETarget,
    ) -> dict[str, Any]:
        """
        The JSON body of one request.

        Parameters
        ----------
        model
            Name of the model.
        rng
            Source of the prompt.
        prompt_tokens, output_tokens
            Lengths of the prompt and of the wanted reply.
        target
            What its reader expects.
        """
        body: dict[str, Any] = {"model": model, "stream": True, **self.body}
        if self.api == "chat":
            body["messages"] = [{"role": "user", "content": words(rng, prompt_tokens)}]
        elif self.token_ids is None:
            body["prompt"] = words(rng, prompt_tokens)
        else:
            body["prompt"] = token_ids(rng, prompt_tokens, self.token_ids[0], self.token_ids[1])

        body[self.length_field] = output_tokens
        if self.reply_length == "ignore_eos":
            body["ignore_eos"] = True
        elif self.reply_length == "min_tokens":
            body["min_tokens"] = output_tokens
        if self.token_counts != "none":
            body["stream_options"] = {"include_usage": True}
        if self.token_counts == "every_event":
            body["stream_options"]["continuous_usage_stats"] = True
        if self.send_targets:
            body["vllm_xargs"] = {"ttft_s": target.ttft_s, "tds": target.tds}
        return body
