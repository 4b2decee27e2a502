"""The last block of a transformer for the class tokens alone: the classifier reads no other output.

All tokens give keys and values; queries, projection and MLP are computed for the first tokens only.
Their outputs are those of the whole block, for a sixth of its FLOPs at most.

B batch, N tokens, K of them wanted, H heads, D width.
"""

from types import MethodType
from typing import Any

from timm.layers.attention import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional


def can_leave_out(block: nn.Module) -> bool:
    """Whether a block is of the kind that can compute fewer outputs; timm has others."""
    return isinstance(block, Block) and type(block.attn) is Attention and block.attn.gate is None


def take_num_outputs(block: nn.Module) -> None:
    """Let a block be called with the number of tokens, the first ones, whose outputs are wanted.

    Its names in the state dict stay. A block that cannot leave any out computes all of them.
    """
    block.forward = MethodType(_first_outputs if can_leave_out(block) else all_outputs, block)


def all_outputs(block: nn.Module, x: Tensor, num_outputs: int | None = None) -> Tensor:
    """All outputs [B, N, D] of tokens [B, N, D]."""
    return type(block).forward(block, x)  # type: ignore[no-any-return]


def _first_outputs(block: Any, x: Tensor, num_outputs: int | None = None) -> Tensor:
    """The first outputs [B, K, D] of tokens [B, N, D]; None: all. As `forward` of timm's block."""
    if num_outputs is None:
        return all_outputs(block, x)
    first = x[:, :num_outputs]
    first = first + block.drop_path1(block.ls1(_attend(block.attn, block.norm1(x), num_outputs)))
    return first + block.drop_path2(block.ls2(block.mlp(block.norm2(first))))  # type: ignore[no-any-return]


def _attend(attention: Any, x: Tensor, num_outputs: int) -> Tensor:
    """The first tokens' [B, K, D] attention to all of [B, N, D]."""
    heads = attention.num_heads
    q, k, v = (
        part.reshape(*part.shape[:2], heads, -1).transpose(1, 2)  # [B, H, K or N, D / H]
        for part in _projected(attention, x, num_outputs)
    )
    q, k = attention.q_norm(q), attention.k_norm(k)
    if attention.fused_attn:
        dropout = attention.attn_drop.p if attention.training else 0.0
        attended = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    else:
        weights = (q * attention.scale) @ k.transpose(2, 3)
        attended = attention.attn_drop(weights.softmax(dim=-1)) @ v
    attended = attention.norm(attended.transpose(1, 2).flatten(2))
    return attention.proj_drop(attention.proj(attended))  # type: ignore[no-any-return]


def _projected(attention: Any, x: Tensor, num_outputs: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [B, K, D], keys and values [B, N, D]."""
    weight, bias, width = attention.qkv.weight, attention.qkv.bias, attention.attn_dim
    q = functional.linear(
        x[:, :num_outputs], weight[:width], None if bias is None else bias[:width]
    )
    kv = functional.linear(x, weight[width:], None if bias is None else bias[width:])
    k, v = kv.chunk(2, dim=2)
    return q, k, v
