"""A slow twin of layers that visual tokens go around: nothing is packed, no cache is kept, one token after another."""

import torch

from foveate.compressors.learned import untrained
from foveate.compressors.registry import make


def p_mod(host, seed=0, **settings):
    """p-MoD with routers that tell tokens apart."""
    method = untrained(make("prefill", "p_mod", **settings), host.widths)
    torch.manual_seed(seed)
    for value in method.network.parameters():
        torch.nn.init.normal_(value, std=0.1)  # far from where weights no longer differ
    method.network.eval().requires_grad_(False)
    return method


@torch.no_grad()
def twin(model, p, row, method, keep_of, answer=()):
    """Logits (1 + Q, V) behind a row's prompt and behind each token of an answer, all recomputed for each layer.

    Args:
        model: Hugging Face's own.
        p: the pass, for what its decoder read.
        row: which row.
        method: p-MoD with its network.
        keep_of: layer -> tokens that run through it; layers that are not in it run whole.
        answer: token ids.
    """
    text, stream = model.model.language_model, p.caches[0].stream
    s = int(stream.length[row])
    x = torch.cat([stream.x[row, :s], text.embed_tokens(torch.tensor(answer, dtype=torch.long))])
    later = stream.next_place[row] + torch.arange(len(answer))
    place = torch.cat([stream.place[row, :s], later[:, None].expand(-1, stream.place.shape[2])])
    axes = place[None, :, 0] if place.shape[1] == 1 else place.T[:, None]
    visual = stream.visual[row, :s].nonzero()[:, 0].tolist()
    causal = torch.ones(len(x), len(x), dtype=torch.bool).tril()
    for index, layer in enumerate(text.layers):
        weight, runs = dict.fromkeys(visual, 1.0), set(visual)
        if index in keep_of:
            network = method.network
            logits = {i: float(network.weight[index - 1] @ x[i] + network.bias[index - 1]) for i in visual}
            weight = {i: 1 + 0.2 * float(torch.tanh(torch.tensor(z))) for i, z in logits.items()}
            runs = set(sorted(visual, key=lambda i: (-weight[i], i))[: keep_of[index]])
        hidden = causal.clone()
        hidden[:, sorted(set(visual) - runs)] = False
        hidden |= torch.eye(len(x), dtype=torch.bool)
        mask = torch.zeros(hidden.shape).masked_fill(~hidden, torch.finfo(torch.float32).min)
        rotation = text.rotary_emb(x[None], axes)
        read = layer.input_layernorm(x[None])
        seen = layer.self_attn(read, position_embeddings=rotation, attention_mask=mask[None, None])[0]
        y = x + seen[0]
        u = layer.mlp(layer.post_attention_layernorm(y))
        out = [
            weight[i] * x[i] if i in weight and i not in runs else y[i] + weight.get(i, 1.0) * u[i]
            for i in range(len(x))
        ]
        x = torch.stack(out)
        if stream.extra is not None and index < stream.extra.shape[2]:
            x[:s] += stream.extra[row, :s, index]
    return model.lm_head(text.norm(x[s - 1 :]))
