"""Linear attention with ReLU features (SANA, arXiv 2410.10629, section 2.2) in a form that survives the export."""

from __future__ import annotations

from typing import Any

import torch

_LEAST = 1e-15  # the smallest sum of weights


def linear_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """v·(kᵀq) / Σkᵀq in float32: query, key (both ≥ 0) and value are [B, heads, D, tokens], and so is the result.

    diffusers divides by the sum + 1e-15, so that 0/0 is 0. The exporter's optimiser takes that for the addition of
    nothing and drops it, and pixels whose features are all 0 become NaN. The larger of the two says the same and
    stays: sums are 0 or far above 1e-15.
    """
    query, key, value = query.float(), key.float(), value.float()
    back = key.transpose(-1, -2)
    total = key.sum(-1, keepdim=True).transpose(-1, -2) @ query
    return (value @ back) @ query / total.clamp(min=_LEAST)


class LinearAttention:
    """The processor of SANA's self-attention on x [B, tokens, C]; only the division is other than diffusers'."""

    def __call__(
        self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: Any = None, attention_mask: Any = None
    ) -> torch.Tensor:
        x = hidden_states
        query, key, value = attn.to_q(x), attn.to_k(x), attn.to_v(x)
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        q, k, v = (t.transpose(1, 2).unflatten(1, (attn.heads, -1)) for t in (query, key, value))
        y = linear_attention(q.relu(), k.relu(), v).flatten(1, 2).transpose(1, 2).to(x.dtype)
        y = attn.to_out[0](y)
        return y.clip(-65504, 65504) if x.dtype == torch.float16 else y
