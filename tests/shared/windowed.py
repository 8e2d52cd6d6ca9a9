"""A slow twin of windowed prefill: one entry after another, keys kept as projected, places counted anew each time."""

import torch

from foveate.compressors.learned import untrained
from foveate.compressors.registry import make


def video_xl(host, seed=0, **settings):
    """Video-XL with summary tokens that are far from what layers make of others."""
    method = untrained(make("prefill", "video_xl", **settings), host.widths)
    torch.manual_seed(seed)
    for name, value in method.network.named_parameters():
        torch.nn.init.normal_(value, std=0.3 if "up" in name else 0.5)
    method.network.eval().requires_grad_(False)
    return method


def rotate(vectors, place, base):
    """Vectors (heads, e) turned by their place: feature i against feature i + e / 2 by place / base^(2 i / e)."""
    half = vectors.shape[1] // 2
    angle = place / base ** (torch.arange(half) / half)
    first, second = vectors[:, :half], vectors[:, half:]
    return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], dim=1)


def run(model, method, memory, entries, summaries):
    """Entries behind what is remembered, all layers.

    Args:
        model: Hugging Face's own, any LLaMA-like.
        method: with its network; None where no entry is a summary.
        memory: of each layer a list of (keys, values), each (heads, e), keys without rotation.
        entries: (Q, D).
        summaries: which of them are summary tokens.
    Returns:
        States (Q, D) behind the last layer, and for each layer (key, value) of every entry.
    """
    text = model.model.language_model
    config, x, made = text.config, entries, []
    e = text.layers[0].self_attn.head_dim
    base = config.rope_parameters["rope_theta"]
    for index, layer in enumerate(text.layers):
        attention, out, own = layer.self_attn, [], []
        turned = [rotate(key, place, base) for place, (key, _) in enumerate(memory[index])]
        for i, state in enumerate(x):
            read = layer.input_layernorm(state[None])[0]
            projected = {}
            for part in "qkv":
                vector = getattr(attention, f"{part}_proj")(read)
                if i in summaries:
                    net = method.network
                    vector = vector + net.up[part][index] @ (net.down[part][index] @ read)
                projected[part] = vector.view(-1, e)
            own.append((projected["k"], projected["v"]))
            seen = memory[index] + own  # whatever stands before, and the entry itself
            turned.append(rotate(projected["k"], len(turned), base))
            keys, values = torch.stack(turned), torch.stack([value for _, value in seen])  # (n, K, e)
            heads = []
            for h, query in enumerate(rotate(projected["q"], len(turned) - 1, base)):
                kv = h // (len(projected["q"]) // len(projected["k"]))
                share = (keys[:, kv] @ query / e**0.5).softmax(0)
                heads.append(share @ values[:, kv])
            state = state + attention.o_proj(torch.cat(heads))
            out.append(state + layer.mlp(layer.post_attention_layernorm(state[None]))[0])
        x = torch.stack(out)
        made.append(own)
    return x, made


@torch.no_grad()
def twin(model, method, before, visual, behind, windows, end):
    """Logits (T, V) behind each of the last entries, and the keys and values that stay, by layer.

    Args:
        model: Hugging Face's own.
        method: Video-XL with its network.
        before, visual, behind: (n, D) each, embedded.
        windows: (tokens, ratio) of each, in order.
        end: id of the token whose embedding a summary reads as published.
    """
    text = model.model.language_model
    memory = [[] for _ in text.layers]

    def keep(made, which):
        for layer, own in enumerate(made):
            memory[layer] += [own[i] for i in which]

    _, made = run(model, None, memory, before, ())
    keep(made, range(len(before)))
    published, start = text.embed_tokens(torch.tensor([end]))[0], 0
    for tokens, ratio in windows:
        entries = []
        for i in range(start, start + tokens):
            entries.append(visual[i])
            if (i - start) % ratio == ratio - 1:
                read = published if method.published else visual[i + 1 - ratio : i + 1].mean(0)
                entries.append(read + method.network.token)
        start += tokens
        which = [i for i in range(len(entries)) if i % (ratio + 1) == ratio]
        _, made = run(model, method, memory, torch.stack(entries), which)
        keep(made, which)
    x, made = run(model, None, memory, behind, ())
    keep(made, range(len(behind)))
    return model.lm_head(text.norm(x)), memory
