"""Token mixers with a state of constant size: their weights and what they keep per sequence.

Weights follow the modelling classes of transformers 5. A short convolution of kernel K remembers the
last K - 1 inputs of each channel.
"""

from __future__ import annotations

from planner.inputs.config_reader import ConfigReader
from planner.inputs.model import StateAttention


def mamba(config: ConfigReader) -> StateAttention:
    """Mamba (arXiv 2312.00752) as in Jamba: I = expand x H channels, each with a state of N numbers."""
    hidden = config.integer("hidden_size")
    inner = config.integer("mamba_expand", default=2) * hidden
    state = config.integer("mamba_d_state", default=16)
    kernel = config.integer("mamba_d_conv", default=4)
    rank_by_size = config.values.get("mamba_dt_rank", "auto") == "auto"
    rank = -(-hidden // 16) if rank_by_size else config.integer("mamba_dt_rank")
    weights = hidden * 2 * inner + inner * (kernel + int(config.flag("mamba_conv_bias", default=True)))
    weights += inner * (rank + 2 * state) + rank * inner + inner  # step size, input and output gates
    weights += inner * state + inner + inner * hidden
    if config.flag("mamba_proj_bias"):
        weights += 2 * inner + hidden
    return StateAttention(
        mixer="mamba",
        num_heads=inner,
        sharded_parameters=weights,
        replicated_parameters=rank + 2 * state,  # their norms
        state_elements=inner * state,
        conv_elements=inner * (kernel - 1),
    )


def mamba2(config: ConfigReader) -> StateAttention:
    """Mamba-2 (arXiv 2405.21060): heads of dimension P with a state of P x N each, gates in groups."""
    hidden = config.integer("hidden_size")
    heads = config.integer("mamba_num_heads", "mamba_n_heads")
    head_dim = _mamba2_head_dim(config, hidden, heads)
    inner = heads * head_dim
    state = config.integer("ssm_state_size", "mamba_d_state")
    groups = config.integer("n_groups", "mamba_n_groups", default=1)
    kernel = config.integer("conv_kernel", "mamba_d_conv", default=4)
    channels = inner + 2 * groups * state
    projected = inner + channels + heads
    weights = hidden * projected + inner * hidden + 3 * heads + inner
    weights += channels * (kernel + int(config.flag("use_conv_bias", "mamba_conv_bias", default=True)))
    if config.flag("use_bias", "mamba_proj_bias"):
        weights += projected + hidden
    return StateAttention(
        mixer="mamba2",
        num_heads=heads,
        sharded_parameters=weights,
        state_elements=inner * state,
        conv_elements=channels * (kernel - 1),
    )


def _mamba2_head_dim(config: ConfigReader, hidden: int, heads: int) -> int:
    if config.values.get("mamba_d_head") == "auto":
        return max(1, config.integer("mamba_expand", default=2) * hidden // heads)
    return config.integer("mamba_head_dim", "mamba_d_head")


def gated_delta(config: ConfigReader) -> StateAttention:
    """Gated delta rule (arXiv 2412.06464) as in Qwen3-Next: a matrix of key x value dimension per value head."""
    hidden = config.integer("hidden_size")
    key_heads, value_heads = config.integer("linear_num_key_heads"), config.integer("linear_num_value_heads")
    key_dim, value_dim = config.integer("linear_key_head_dim"), config.integer("linear_value_head_dim")
    kernel = config.integer("linear_conv_kernel_dim", default=4)
    keys, values = key_heads * key_dim, value_heads * value_dim
    channels = 2 * keys + values
    weights = hidden * (channels + values + 2 * value_heads) + values * hidden
    weights += channels * kernel + 2 * value_heads
    return StateAttention(
        mixer="gated_delta",
        num_heads=value_heads,
        sharded_parameters=weights,
        replicated_parameters=value_dim,
        state_elements=value_heads * key_dim * value_dim,
        conv_elements=channels * (kernel - 1),
    )


def kimi_delta(config: ConfigReader) -> StateAttention:
    """Kimi delta attention (arXiv 2510.26692): a decay per channel, from a low-rank projection."""
    hidden = config.integer("hidden_size")
    if config.values.get("linear_attn_config") is not None:
        inner = config.inside("linear_attn_config")
        heads, dim = inner.integer("num_heads"), inner.integer("head_dim")
        kernel = inner.integer("short_conv_kernel_size", default=4)
    else:
        heads, dim = config.integer("linear_num_heads"), config.integer("linear_head_dim")
        kernel = config.integer("linear_conv_kernel_dim", default=4)
    width = heads * dim
    weights = 4 * hidden * width + 3 * width * kernel + hidden * heads
    weights += 2 * dim * width + width + heads
    return StateAttention(
        mixer="kimi_delta",
        num_heads=heads,
        sharded_parameters=weights,
        replicated_parameters=2 * hidden * dim + dim,
        state_elements=heads * dim * dim,
        conv_elements=3 * width * (kernel - 1),
    )


def lightning(config: ConfigReader) -> StateAttention:
    """Lightning attention (arXiv 2501.08313): queries, keys, values, an output gate, a norm."""
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    dim = config.integer("head_dim", default=max(1, hidden // heads))
    width = heads * dim
    return StateAttention(
        mixer="lightning",
        num_heads=heads,
        sharded_parameters=5 * hidden * width + width,
        state_elements=heads * dim * dim,
    )


def short_conv(config: ConfigReader) -> StateAttention:
    """Gated short convolution of LFM2: remembers only its last inputs."""
    hidden = config.integer("hidden_size")
    kernel = config.integer("conv_L_cache", default=3)
    bias = 5 * hidden if config.flag("conv_bias") else 0
    return StateAttention(
        mixer="short_conv",
        num_heads=hidden,
        sharded_parameters=4 * hidden * hidden + kernel * hidden + bias,
        conv_elements=hidden * (kernel - 1),
    )
