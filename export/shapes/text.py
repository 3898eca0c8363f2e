"""The CLIP text encoder that both pipelines start from, untrained."""

from __future__ import annotations

from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .vocabulary import MAX_TOKENS


def round_up(number: int, unit: int = 64) -> int:
    return -(-number // unit) * unit


def build_clip(tokenizer: CLIPTokenizer, width: int, layers: int) -> CLIPTextModel:
    """CLIP text model with heads of 64. Its end token's number must not be 2, which means an old way of pooling."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=round_up(len(tokenizer)),
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
