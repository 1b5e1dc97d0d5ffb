"""The rows and columns that a tensor of attention keeps in a layer whose KV groups own, follow or are dropped.

The groups of the output lie in the order of AttentionMap.order(): own ones, followers, and no dropped ones. Q and K
have rows of own groups alone, V of own and following ones, and the output projection has columns of the same.
"""

from collections.abc import Iterable
from dataclasses import replace

from ..errors import Unsupported, damaged
from ..formats.gguf_header import Header, TensorInfo
from ..formats.tensor_copies import Cuts, TensorCopy, columns_of, rows_of, whole_copy
from ..model.architectures import Architecture
from ..model.attention_map import AttentionMap, Group
from ..model.facts import Facts

PER_HEAD = ("attn_q_norm", "attn_k_norm", "attn_sinks")
OF_ALL_HEADS = ("attn_norm", "attn_norm_2", "attn_output", "attn_output_norm", "attn_post_norm", "attn_rot_embd")


class LayerCuts:
    """Cuts the tensors of one layer of a dense file."""

    def __init__(self, dense: Header, facts: Facts, arch: Architecture, attention: AttentionMap, layer: int) -> None:
        self.dense, self.facts, self.arch, self.attention, self.layer = dense, facts, arch, attention, layer
        order = attention.order(layer)
        self.own = [group for group in order if attention.action(group) == "own"]
        self.kept = [group for group in order if attention.action(group) != "drop"]
        self.keeps_all = self.kept == list(attention.groups(layer)) and not self.own

    def cut(self, info: TensorInfo, role: str, suffix: str) -> TensorCopy | None:
        """Return what the output has of a tensor, None if nothing.

        Raises BadInput for a tensor with another number of rows than the heads need, Unsupported for one that cannot be
        cut.
        """
        if not self._has(role, suffix):
            return None
        if suffix not in ("weight", "bias"):  # one scale for the whole tensor, or another tensor
            return replace(whole_copy(info), name=self._name(info, role, suffix))
        facts, n_rep = self.facts, self.attention.n_rep(self.layer)
        if role == "attn_output" and suffix == "weight":
            return columns_of(info, info.name, _cuts(self.kept, facts.head_dim_v * n_rep))
        if role in ("attn_q", "attn_k", self.arch.v, self.arch.fused_qkv):
            return self._rows(info, role, suffix)
        if role in PER_HEAD:
            return self._per_head(info, role, n_rep)
        if role.startswith(("attn_q", "attn_k")) or (
            role.startswith("attn_") and not self.keeps_all and role not in OF_ALL_HEADS
        ):
            raise self._unknown(info)
        return whole_copy(info)

    def _has(self, role: str, suffix: str) -> bool:
        if role in self.arch.qk:
            return bool(self.own)
        if role in (self.arch.v, self.arch.fused_qkv) or (role == "attn_output" and suffix != "bias"):
            return bool(self.kept)
        return True

    def _name(self, info: TensorInfo, role: str, suffix: str) -> str:
        """A fused tensor of V alone has the name of V."""
        if role == self.arch.fused_qkv and not self.own:
            return f"blk.{self.layer}.{self.arch.v}.{suffix}"
        return info.name

    def _rows(self, info: TensorInfo, role: str, suffix: str) -> TensorCopy:
        facts, n_rep = self.facts, self.attention.n_rep(self.layer)
        n_q, n_k, n_v = facts.n_embd_q(self.layer), facts.n_embd_k(self.layer), facts.n_embd_v(self.layer)
        q = _cuts(self.own, n_rep * facts.head_dim_k)
        k, v = _cuts(self.own, facts.head_dim_k), _cuts(self.kept, facts.head_dim_v)
        cuts, n_rows = {
            "attn_q": (q, n_q),
            "attn_k": (k, n_k),
            self.arch.v: (v, n_v),
            self.arch.fused_qkv: ((*q, *_moved(k, n_q), *_moved(v, n_q + n_k)), n_q + n_k + n_v),
        }[role]
        if info.shape[-1] != n_rows:
            raise damaged(self.dense.path, f"tensor '{info.name}'", f"{info.shape[-1]} rows, expected {n_rows}")
        return rows_of(info, self._name(info, role, suffix), cuts)

    def _per_head(self, info: TensorInfo, role: str, n_rep: int) -> TensorCopy:
        heads = 1 if role == "attn_k_norm" else n_rep  # of one group
        if info.shape[-1] == heads * self.facts.n_head_kv[self.layer] and (len(info.shape) > 1 or role == "attn_sinks"):
            return rows_of(info, info.name, _cuts(self.own, heads))
        if info.shape == (self.facts.head_dim_k,):  # the same for all heads
            return whole_copy(info)
        raise self._unknown(info)

    def _unknown(self, info: TensorInfo) -> Unsupported:
        reason = "is not known in a layer that shares attention"
        field, next_step = f"tensor '{info.name}'", "choose other layers"
        if not self.keeps_all:
            reason, next_step = "is not known in a layer whose KV groups do different things", "share whole layers"
        return Unsupported(reason, path=self.dense.path, field=field, next_step=next_step)


def kept_columns(facts: Facts, attention: AttentionMap, layer: int) -> list[int]:
    """Return the columns of a layer's output projection that it keeps, in the order of the SA file."""
    width = attention.n_rep(layer) * facts.head_dim_v
    kept = [group for group in attention.order(layer) if attention.action(group) != "drop"]
    return [group.number * width + i for group in kept for i in range(width)]


def _cuts(groups: Iterable[Group], width: int) -> Cuts:
    """Return the place of each group, `width` numbers each; groups that follow each other are one piece."""
    found: list[tuple[int, int]] = []
    for first, stop in ((group.number * width, (group.number + 1) * width) for group in groups):
        if found and found[-1][1] == first:
            found[-1] = found[-1][0], stop
        else:
            found.append((first, stop))
    return tuple(found)


def _moved(cuts: Cuts, by: int) -> Cuts:
    return tuple((first + by, stop + by) for first, stop in cuts)
