"""Answers by transformers' own loops, behind caches of any shape: sampling, beams, penalties, rules for stopping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin
from transformers.generation import GenerationMode
from transformers.modeling_outputs import CausalLMOutputWithPast

from foveate.models.behind import Continuation
from foveate.models.errors import BadInput

if TYPE_CHECKING:
    from foveate.models.host import Host
    from foveate.models.passes import Pass

DEFAULT_NEW_TOKENS = 20
"""What `generate` of transformers takes where neither the call nor the model says."""

MODES = (
    GenerationMode.GREEDY_SEARCH,
    GenerationMode.SAMPLE,
    GenerationMode.BEAM_SEARCH,
    GenerationMode.BEAM_SAMPLE,
)
"""Loops that feed one token at a time to each sequence: all that a cache of any shape needs."""

READ = {
    *("max_length", "max_new_tokens", "min_length", "pad_token_id", "bos_token_id", "eos_token_id"),
    *("use_cache", "disable_compile", "transformers_version"),
}
"""Fields of a generation config that are read here, or that say nothing about tokens."""

SAMPLING = {
    *("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"),
    *("early_stopping", "length_penalty"),
}
"""Fields that say nothing without sampling or beams."""

LOOP = SAMPLING | {
    *("do_sample", "num_beams", "num_return_sequences", "renormalize_logits", "remove_invalid_values"),
    *("repetition_penalty", "encoder_repetition_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"),
    *("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias", "exponential_decay_length_penalty"),
    *("forced_bos_token_id", "forced_eos_token_id", "min_new_tokens", "max_time", "stop_strings"),
}
"""Fields that the loops read."""

NOTHING = {
    **{"num_beams": 1, "num_return_sequences": 1, "num_beam_groups": 1, "min_new_tokens": 0, "no_repeat_ngram_size": 0},
    **{"encoder_no_repeat_ngram_size": 0, "repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0},
    **{"diversity_penalty": 0.0, "guidance_scale": 1.0},
}
"""Values that say nothing, written out."""

BESIDE = {"logits_processor", "stopping_criteria", "tokenizer"}
"""Arguments of `generate` beside its config that the loops take; the tokenizer is for stop strings, by default the
host's."""

LENGTHS = "every layer's cache has a length of its own here"
WHY = {
    "cache_implementation": LENGTHS,
    "cache_config": LENGTHS,
    "max_cache_len": LENGTHS,
    "continuous_batching_config": f"continuous batching pages the cache, and {LENGTHS}",
    "compile_config": f"nothing can be compiled for it: {LENGTHS}",
    "prefill_chunk_size": "a prompt runs in one piece, stage by stage",
    "use_cache": "an answer is made behind a cache",
    "token_healing": "it changes the prompt, which has been read by then",
    "guidance_scale": "it runs the model on a second prompt",
    **dict.fromkeys(("negative_prompt_ids", "negative_prompt_attention_mask"), "a second prompt, which nothing reads"),
    "past_key_values": "a cache of an earlier call; whole prompts are read here, and a conversation goes on by "
    "`Gate.talk`",
    "streamer": "tokens come once all rows are done, some of which may be answered anew",
    "assistant_model": "assisted decoding: drafts are checked on a cache that can be cut back",
    "prompt_lookup_num_tokens": "assisted decoding: drafts are checked on a cache that can be cut back",
    "custom_generate": "a loop of the caller's own",
    "return_dict_in_generate": "token ids are all that comes back",
    **dict.fromkeys(
        ("output_scores", "output_logits", "output_attentions", "output_hidden_states"),
        "token ids are all that comes back",
    ),
}
"""Why something cannot be had behind a compressed cache."""


@dataclass(frozen=True)
class Settings:
    """How answers are made.

    Attributes:
        config: transformers' own, complete: what the call, the model and the library say. Its limit is in new tokens.
        ends: ids that end an answer.
        pad: id that fills rows which ended earlier.
        plain: greedy, and nothing that changes a token.
        beside: see `BESIDE`.
    """

    config: GenerationConfig
    ends: frozenset[int]
    pad: int
    plain: bool
    beside: Mapping[str, Any] = field(default_factory=dict)

    @property
    def limit(self) -> int:
        """Most new tokens."""
        return self.config.max_new_tokens

    @property
    def answers(self) -> int:
        """Answers to each row."""
        return self.config.num_return_sequences or 1

    @property
    def beams(self) -> int:
        """Sequences that a beam search keeps for each row; 1 = none."""
        return self.config.num_beams or 1

    @property
    def width(self) -> int:
        """Sequences that run for each row."""
        return max(self.beams, self.answers)


def greedily(host: Host, max_new_tokens: int) -> Settings:
    """Plain greedy decoding, whatever the model's own generation config says. Raises: BadInput on a limit below 1."""
    if max_new_tokens < 1:
        raise BadInput(f"max_new_tokens = {max_new_tokens} is below 1")
    ends = sorted(host.ends)
    config = GenerationConfig(max_new_tokens=max_new_tokens, eos_token_id=ends, pad_token_id=ends[0])
    return Settings(config, host.ends, ends[0], plain=True)


def read(host: Host, given: Mapping[str, Any], length: int = 0) -> Settings:
    """Settings of a call, with the model's own where the call is silent, as `generate` joins them.

    Args:
        host: whose model.
        given: arguments of `generate` but the prompt and its pixels.
        length: entries of the longest prompt, what `max_length` and `min_length` count too.
    Raises:
        BadInput: what cannot be had behind a compressed cache, with the reason, or what transformers refuses.
    """
    given = {name: value for name, value in given.items() if value is not None}
    for name in sorted(set(given) & set(WHY) - set(vars(GenerationConfig()))):
        raise BadInput(f"{name}: {WHY[name]}")
    if (kind := str(host.decoder.config._attn_implementation)).startswith("paged"):
        raise BadInput(f"attention {kind!r}: {WHY['continuous_batching_config']}")
    beside = {name: given.pop(name) for name in BESIDE & set(given)}
    longest = _longest(host, given)
    try:
        config, other = host.model._prepare_generation_config(given.pop("generation_config", None), **given)
    except (ValueError, TypeError) as error:
        raise BadInput(" ".join(str(error).split())) from error
    if unknown := set(other) - set(vars(config)):
        raise BadInput(f"argument {min(unknown)!r} is not one that can be followed here")
    _check(config)
    if config.stop_strings:
        beside.setdefault("tokenizer", host.inputs.tokenizer)
    if config.max_new_tokens is None:
        config.max_new_tokens = DEFAULT_NEW_TOKENS if longest is None else longest - length
    if config.max_new_tokens < 1:
        raise BadInput(f"{config.max_new_tokens} new tokens are left to generate")
    if config.min_length:
        config.min_new_tokens = max(config.min_new_tokens or 0, config.min_length - length)
    config.max_length = config.min_length = None
    ends = config.eos_token_id
    if ends is None:
        raise BadInput("eos_token_id: None; an answer would never end")
    ends = frozenset([ends] if isinstance(ends, int) else ends)
    pad = min(ends) if config.pad_token_id is None else config.pad_token_id
    config.pad_token_id = pad
    rest = [name for name in LOOP - SAMPLING if not _off(name, getattr(config, name, None))]
    return Settings(config, ends, pad, not rest and not beside and ends == host.ends, beside)


def _longest(host: Host, given: Mapping[str, Any]) -> int | None:
    """The `max_length` that somebody set, the call before the model."""
    own = given.get("generation_config")
    found = (given.get("max_length"), getattr(own, "max_length", None), host.model.generation_config.max_length)
    return next((value for value in found if value is not None), None)


def _off(name: str, value: Any) -> bool:
    return value is None or value is False or name in NOTHING and value == NOTHING[name]


def _check(config: GenerationConfig) -> None:
    """Raises: BadInput on what the loops cannot do here."""
    untouched = GenerationConfig._get_default_generation_params()
    for name, value in sorted(vars(config).items()):
        if name == "cache_implementation" and value in (None, "dynamic"):
            continue
        if name == "use_cache" and value is False:
            raise BadInput(f"use_cache = False: {WHY[name]}")
        plain = name in READ | LOOP or name.startswith("_") or _off(name, value) or value == untouched.get(name)
        if not plain:
            raise BadInput(f"{name} = {value!r}: {WHY.get(name, 'cannot be followed behind a compressed cache')}")
    if (mode := config.get_generation_mode()) not in MODES:
        raise BadInput(f"{mode.value.replace('_', ' ')}: needs more than one token at a time behind a compressed cache")


def left_padded(prompts: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(B, longest) ids and attention mask."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return ids, mask


def sampled(of: Pass, settings: Settings) -> tuple[list[list[int]], int]:
    """Answers by the loop that the settings name, drawn from torch's own generator as `generate` draws them.

    Returns:
        The ids of each answer, its end included where it came: `settings.answers` of each row, row by row; and the
        steps that were run.
    """
    host, behind = of.host, _Behind(of)
    pad = host.inputs.tokenizer.pad_token_id or 0
    ids, mask = left_padded([row.ids.tolist() for row in of.rows], pad, of.logits.device)
    out = behind.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=settings.config,
        past_key_values=_Cache(of),
        **settings.beside,
    )
    found = out[:, ids.shape[1] :].tolist()
    return [ended(answer, settings.ends) for answer in found], behind.steps


def ended(ids: list[int], ends: frozenset[int]) -> list[int]:
    """An answer up to its end."""
    return ids[: next((at + 1 for at, token in enumerate(ids) if token in ends), len(ids))]


class _Cache:
    """What the loops take for a cache: the caches behind a pass's prompts, and what has been fed since."""

    is_compileable = False

    def __init__(self, of: Pass) -> None:
        self.of = of
        self.run: Continuation | None = None

    def get_seq_length(self) -> int:
        """None of the ids handed over: the loops shall keep all, since penalties read them."""
        return 0

    def logits(self, ids: Tensor) -> Tensor:
        """(R, V) behind the prompts, each as many times as R says; later, behind the last of ids (R, L)."""
        decoder, b = self.of.host.decoder, len(self.of)
        if self.run is not None:
            return decoder.logits(self.run.feed(ids)[:, -1])
        rows = torch.arange(b, device=ids.device).repeat_interleave(len(ids) // b)
        self.run = Continuation(decoder, self.of.caches, rows)
        return self.of.logits[rows]

    def reorder_cache(self, order: Tensor) -> None:
        """Sequence i goes on from sequence `order[i]`."""
        self.run.reorder(order)


class _Behind(GenerationMixin):
    """What the loops take for a model: the decoder of a pass, behind its prompts."""

    main_input_name = "input_ids"
    _is_stateful = False

    def __init__(self, of: Pass) -> None:
        self.config, self.generation_config = of.host.model.config, GenerationConfig()
        self.device, self.dtype = of.logits.device, of.host.dtype
        self.steps = 0

    def __call__(self, **given: Any) -> CausalLMOutputWithPast:
        return self.forward(**given)

    def forward(
        self, input_ids: Tensor, past_key_values: _Cache, attention_mask: Tensor | None = None, **_: Any
    ) -> CausalLMOutputWithPast:
        """Logits (R, 1, V) of the next tokens; the mask is the prompts' business, who have run."""
        self.steps += 1
        return CausalLMOutputWithPast(logits=past_key_values.logits(input_ids)[:, None])

    def can_generate(self) -> bool:
        """Asked for by the loops."""
        return True

    def is_remote_code(self) -> bool:
        """Asked for by the loops."""
        return False

    def get_experts_implementation(self) -> dict[str, str]:
        """Asked for by the loops."""
        return {}
