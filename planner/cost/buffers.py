"""Memory of communication libraries on one GPU: by library, EP size, experts, tokens and width.

DeepEP's formulas follow `csrc/config.hpp` of deepseek-ai/DeepEP (V1, at 030cdf0), whose own figures the
tests hold them against; a message carries per 128 channels one scale of 4 bytes.
"""

from __future__ import annotations

from typing import Final, assert_never

from planner.cost.instance import Instance
from planner.cost.lines import MemoryLine
from planner.inputs.kernels import ChunkedBuffer, FixedBuffer, GroupBuffer, LowLatencyBuffer
from planner.plan.split import Split

_NODE_RANKS: Final = 8
"""DeepEP's most ranks of one NVLink domain."""
_ALIGNMENT: Final = 128
_BF16: Final = 2
_NAME: Final = "communication buffers"


def tokens_sent(step_tokens: int, split: Split) -> int:
    """Tokens that one GPU brings to an exchange: its part of the data-parallel rank's micro-batch."""
    per_rank = -(-step_tokens // (split.micro_batches * split.dp))
    return -(-per_rank // split.tp)


def exchange_buffers(
    instance: Instance, split: Split, slots: int, sent: int, *, crosses_nodes: bool
) -> list[MemoryLine]:
    """Lines of the library that exchanges tokens between experts; none where it has nothing to do.

    Args:
        instance: the model and the library.
        split: the degrees.
        slots: experts of a layer, copies included: each has its place in a low-latency buffer
            (vllm-project/vllm#57894).
        sent: tokens that a GPU brings at most.
        crosses_nodes: whether some EP group lies on several nodes.
    """
    if not instance.exchanges(split):
        return []
    kernel, moe = instance.constants.kernel, instance.model.moe
    width = _padded(moe.expert_hidden_size(instance.model.hidden_size), kernel.limits.hidden_sizes)
    buffer = kernel.buffer
    match buffer:
        case FixedBuffer(size=size):
            return [MemoryLine(_NAME, size.value, size.basis, size.source)]
        case GroupBuffer():
            return [_of_group(buffer, split.ep, _NAME)]
        case LowLatencyBuffer():
            tokens = max(sent, buffer.tokens.value)
            num_bytes = low_latency_bytes(tokens, width, slots)
            source = f"{slots} experts x {tokens} tokens x width {width}, two sends and two receives; {buffer.source}"
            lines = [MemoryLine(f"{_NAME}, low latency", num_bytes, buffer.tokens.basis, source)]
            if buffer.nvlink is not None:
                beside = buffer.nvlink
                lines.append(MemoryLine(f"{_NAME}, NVLink", beside.value, beside.basis, beside.source))
            return lines
        case ChunkedBuffer():
            return _chunked(buffer, split.ep, width, crosses_nodes=crosses_nodes)
        case _:
            assert_never(buffer)


def collective_buffers(instance: Instance, split: Split) -> list[MemoryLine]:
    """Lines of the communicators of tensor-parallel groups and of sends between stages."""
    buffer = instance.constants.collectives.buffer
    groups = [("tensor-parallel group", split.tp)]
    if split.etp != split.tp:
        groups.append(("expert-tensor group", split.etp))
    if split.pp > 1:
        groups.append(("sends between stages", 2))
    groups = [(what, ranks) for what, ranks in groups if ranks > 1]
    if isinstance(buffer, GroupBuffer):
        return [_of_group(buffer, ranks, f"{_NAME}, {what}") for what, ranks in groups]
    if isinstance(buffer, FixedBuffer) and groups:
        return [MemoryLine(f"{_NAME}, collectives", buffer.size.value, buffer.size.basis, buffer.size.source)]
    return []


def _of_group(buffer: GroupBuffer, ranks: int, name: str) -> MemoryLine:
    """The entry of the most ranks that the group has at least; the smallest for smaller groups."""
    known = sorted(buffer.sizes)
    entry = max((size for size in known if size <= ranks), default=known[0])
    return MemoryLine(name, buffer.sizes[entry], buffer.basis, f"a group of {ranks}; {buffer.source}")


def _padded(width: int, built_for: tuple[int, ...]) -> int:
    """Width as it is sent: the next one that the library is built for, else as it is."""
    return min((known for known in built_for if known >= width), default=width)


def low_latency_bytes(tokens: int, width: int, slots: int) -> int:
    """DeepEP's `get_low_latency_rdma_size_hint`: two buffers each to send and to receive, and signals.

    Every expert has a place for every token of every rank. DeepSeek-V3 with 256 experts of width 7168
    and 128 tokens per rank: 4 x 256 x 128 x (7168 x 2 + 56 x 4) = 1,908,408,320 bytes and 2,176 bytes
    more for signals and alignment, 1.78 GiB at any number of ranks; 448 experts of width 5120 and
    2048 tokens: 35.55 GiB (vllm-project/vllm#57894).
    """
    scales = width // 128
    dispatch = 16 + max(width * _BF16, width + 4 * scales)
    combine = 4 * scales + width * _BF16
    send = max(tokens * dispatch, slots * tokens * combine)
    receive = slots * tokens * max(dispatch, combine)
    signals = _aligned(slots * 4)
    total = 2 * (send + receive + signals)
    return (total // _ALIGNMENT + 1) * _ALIGNMENT


def nvlink_bytes(width_bytes: int, ranks: int, sms: int, receive_tokens: int) -> int:
    """DeepEP's `Config.get_nvl_buffer_size_hint`: for each channel and GPU of the node a queue of tokens.

    Per token: its activations, 8 bytes of where it is from, 128 choices of 8 + 4 bytes, 128 scales of 4.
    """
    channels, peers, nodes = sms // 2, min(ranks, _NODE_RANKS), max(ranks // _NODE_RANKS, 1)
    per_token = width_bytes + 8 + 128 * (8 + 4) + 128 * 4
    return _aligned(channels * peers * ((2 * nodes + 3) * 4 + receive_tokens * per_token))


def rdma_bytes(width_bytes: int, ranks: int, sms: int, receive_tokens: int) -> int:
    """DeepEP's `Config.get_rdma_buffer_size_hint`: the same for each node, to send and to receive."""
    if ranks <= _NODE_RANKS:
        return 0
    channels, nodes = sms // 2, ranks // _NODE_RANKS
    per_token = width_bytes + 8 + 128 * (8 + 4) + 128 * 4 + 16
    return _aligned(2 * channels * nodes * ((2 * _NODE_RANKS + 2) * 4 + receive_tokens * per_token))


def _chunked(buffer: ChunkedBuffer, ranks: int, width: int, *, crosses_nodes: bool) -> list[MemoryLine]:
    inside, between = buffer.receive_tokens.get(ranks, max(buffer.receive_tokens.values()))
    sizes = (
        nvlink_bytes(width * _BF16, ranks, buffer.sms, inside),
        rdma_bytes(width * _BF16, ranks, buffer.sms, between),
    )
    lines = []
    for name, size, tokens, fixed in zip(
        ("NVLink", "RDMA"), sizes, (inside, between), (buffer.nvlink, buffer.rdma), strict=True
    ):
        if name == "RDMA" and not crosses_nodes:
            continue
        if fixed is not None:
            lines.append(MemoryLine(f"{_NAME}, {name}", fixed.value, fixed.basis, fixed.source))
            continue
        source = f"{buffer.sms // 2} channels with queues of {tokens} tokens at ep {ranks}; {buffer.source}"
        lines.append(MemoryLine(f"{_NAME}, {name}", size, "assumed", source))
    return lines


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
