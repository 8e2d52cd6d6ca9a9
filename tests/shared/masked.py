"""Dropping told as masking: Hugging Face's own model, every token in place, dropped ones hidden as keys.

What a prefill method drops before a layer is, for all that stays where it stood, the same as hiding it from that layer
on. So the untouched model with one mask a layer must give the logits of a pass.
"""

import pytest
import torch

from foveate.compressors.learned import untrained
from foveate.compressors.registry import COMPRESSORS, make
from foveate.models.errors import HostError

METHODS = sorted(name for stage, name in COMPRESSORS if stage == "prefill")
"""Every method that acts between layers: the test grows with the registry."""


def run(host, name, images, questions, keep):
    """A pass behind its prefill with one method. Skips what masking cannot tell: merges, new numbers, no weights."""
    reason, video = host.supports("prefill", name), COMPRESSORS["prefill", name].modality == "video"
    if reason is not None and not video:  # one for video sees a picture as one frame
        pytest.skip(reason)
    method = untrained(make("prefill", name), host.widths, host.matrices())
    if missing := {signal.kind for signal in method.signals(host.decoder_depth)} - host.signals:
        pytest.skip(f"{name}: needs the signal {', '.join(sorted(missing))}")
    if method.positions != "keep" and host.decoder.coordinates == 1:
        pytest.skip(f"{name}: numbers places anew")
    p = host.open(images, questions)
    try:
        p.prefill(method, keep)
    except HostError as refused:
        pytest.skip(str(refused))
    if method.proportional or any(r.into is not None for row in p.opened.history for _, r in row):
        pytest.skip(f"{name}: merges")
    return p


@torch.no_grad()
def masked_logits(model, p, inputs):
    """The model's logits (B, V) behind the prompts of a pass, each layer seeing the entries that it had there.

    Args:
        model: Hugging Face's, untouched but for hooks that end with the call.
        p: the pass.
        inputs: the processor's batch, padded on the left; what stands behind the prompts of the pass is seen.
    """
    b, s = inputs["input_ids"].shape
    pad = (inputs["attention_mask"] == 0).sum(dim=1)
    masks = []
    for layer, cache in enumerate(p.caches):
        seen, ran = torch.zeros(b, s, dtype=torch.bool), torch.zeros(b, s, s, dtype=torch.bool)
        for row in range(b):
            first, end = int(pad[row]), int(pad[row]) + len(p.rows[row].ids)
            seen[row, first + cache.stream.entry[row, : int(cache.length[row])]] = True
            seen[row, end:] = True
            # the prompt itself ran with all, whatever its cache has forgotten since
            ran[row, first:end, first:end] = all(layer < cut for cut, _ in p.opened.history[row])
        allowed = (torch.ones(s, s, dtype=torch.bool).tril() & (seen[:, None] | ran)) | torch.eye(s, dtype=torch.bool)
        masks.append(torch.zeros(b, 1, s, s).masked_fill(~allowed[:, None], torch.finfo(torch.float32).min))
    hooks = []
    try:
        for layer, mask in zip(model.model.language_model.layers, masks, strict=True):
            hide = lambda _, args, kwargs, mask=mask: (args, {**kwargs, "attention_mask": mask})  # noqa: E731
            hooks.append(layer.register_forward_pre_hook(hide, with_kwargs=True))
        return model(**inputs, use_cache=False).logits[:, -1].float()
    finally:
        for hook in hooks:
            hook.remove()


def check_counts(p, name):
    """What a pass with a method says it kept in each layer is what its caches hold; all alike where it forgets."""
    for row, ran in enumerate(p.counts["layers"]):
        words, held = len(p.rows[row].text), ran[-1:] * len(ran) if make("prefill", name).forgets else ran
        assert p.cached[row] == [words + n for n in held]
        for cache, n in zip(p.caches, held, strict=True):
            length = int(cache.length[row])
            assert int(cache.n[row]) == n == int(cache.stream.visual[row, :length].sum())
            assert cache.keys.shape[2] >= length
            assert cache.stream.entry[row, :length].unique().numel() == length
