"""A small model with real random weights, so that its streams tell engines apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def write_model(
    folder: Path, *, hidden: int = 128, layers: int = 3, positions: int = 2048, seed: int = 0
) -> str:
    """
    Write an OPT with normal weights of standard deviation 0.12.

    vLLM's dummy weights, and the usual 0.02, repeat one token for ever.
    """
    import torch
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(seed)
    config = OPTConfig(
        hidden_size=hidden,
        ffn_dim=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        word_embed_proj_dim=hidden,
        vocab_size=2048,
        max_position_embeddings=positions,
        init_std=0.12,
    )
    OPTForCausalLM(config).eval().float().save_pretrained(folder)
    return str(folder)
