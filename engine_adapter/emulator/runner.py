"""A worker in place of a model: a token for each request that samples, and what that computes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from engine_adapter.emulator.prompts import REPLY_TOKEN

if TYPE_CHECKING:
    from collections.abc import Iterable


class Work(NamedTuple):
    """
    What an iteration computes, in the words of :class:`andes_opt.latency.LatencyModel`.

    Parameters
    ----------
    decoding
        Requests that decode one token each.
    context_tokens
        KV tokens that these attend to, the new ones included.
    prefill_tokens
        Tokens of prompts, and of what is computed again.
    cached_tokens
        Tokens of the requests admitted in it that the prefix cache had.
    """

    decoding: int
    context_tokens: int
    prefill_tokens: int
    cached_tokens: int


class Prefills:
    """
    Follows the requests that still have tokens to compute before they sample.

    Parameters
    ----------
    scheduler
        A vLLM scheduler.

    Attributes
    ----------
    unfinished
        Requests of the last iteration that did not sample in it.
    """

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self.unfinished: set[str] = set()

    def look(self, output: Any) -> Work:
        """Returns what an iteration computes; once for each, right after it was scheduled."""
        scheduled: dict[str, int] = output.num_scheduled_tokens
        cached = output.scheduled_cached_reqs
        self.unfinished -= output.finished_req_ids
        if not (output.scheduled_new_reqs or cached.resumed_req_ids or self.unfinished):
            # Everybody decodes: the usual case.
            decoding = len(scheduled)
            return Work(decoding, sum(cached.num_computed_tokens) + decoding, 0, 0)

        hits = {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
        prompts = {key for key in self.unfinished if key in scheduled}
        context = 0
        for key, computed in zip(cached.req_ids, cached.num_computed_tokens, strict=True):
            if key in cached.resumed_req_ids:
                hits[key] = computed
            elif key not in prompts:
                context += computed
        prompts.update(hits)
        decoding = len(scheduled) - len(prompts)
        self._update(prompts)
        prefill = sum(scheduled[key] for key in prompts)
        return Work(decoding, context + decoding, prefill, sum(hits.values()))

    def _update(self, prompts: Iterable[str]) -> None:
        requests = self._scheduler.requests
        for key in prompts:
            request = requests[key]
            if request.num_computed_tokens < request.num_tokens:
                self.unfinished.add(key)
            else:
                self.unfinished.discard(key)


class OneTokenRunner:
    """
    A model that answers with one and the same token, and takes no time.

    Parameters
    ----------
    prefills
        What does not sample; brought up to date before each iteration.
    """

    def __init__(self, prefills: Prefills) -> None:
        from vllm.v1.outputs import ModelRunnerOutput

        self._prefills = prefills
        self._make = ModelRunnerOutput

    def execute(self, output: Any) -> Any:
        """Run one iteration."""
        keys = list(output.num_scheduled_tokens)
        # One list for all: vLLM shortens them only where a reply ends among several tokens.
        token = [REPLY_TOKEN]
        sampled = [token] * len(keys)
        unfinished = self._prefills.unfinished
        if unfinished:
            sampled = [[] if key in unfinished else token for key in keys]
        return self._make(
            req_ids=keys,
            req_id_to_index=dict(zip(keys, range(len(keys)), strict=True)),
            sampled_token_ids=sampled,
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
        )
