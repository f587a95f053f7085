# SPDX-License-Identifier: Apache-2.0
"""What a request's pages must hold, kept beside the storage: its tokens, their keys, the means of its pages.

A token's key is a hash of all tokens up to it, an integer that float32 holds exactly, so the mean of a page's keys is
exact and tells whether a representation is of this very content.
"""

from __future__ import annotations

import dataclasses
from typing import List, Optional

import torch

PAGE = 4
MODULUS = 1 << 20  # four hashes add up exactly in float32


def key_of(previous: int, token: int) -> int:
    """Key of a token after the token with key ``previous``."""
    return (previous * 31 + token * 7919 + 1) % MODULUS


@dataclasses.dataclass(eq=False)
class Request:
    """What the radix cache needs of a Req, and the dictionary's side: tokens and keys by position."""

    origin_input_ids: List[int]
    keys: List[int]
    req_pool_idx: int = -1
    kv_committed_len: int = 0
    cache_protected_len: int = 0
    last_node: object = None
    prefix_indices: Optional[torch.Tensor] = None
    output_ids: List[int] = dataclasses.field(default_factory=list)
    extra_key: None = None
    # What the unified radix cache asks for as well.
    lock: object = None
    cache_inserted_len: int = 0
    priority: int = 0
    rid: str = ""
    cache_salt: None = None
    session: None = None
    session_id: None = None
    kv_rotation_base: None = None

    @property
    def kv(self) -> Request:
        """Where the request's keys are: its own fields."""
        return self

    @property
    def full_untruncated_fill_ids(self) -> List[int]:
        return self.get_fill_ids()

    def finished(self) -> bool:
        return False

    @property
    def fill_ids(self) -> List[int]:
        return self.get_fill_ids()

    def get_fill_ids(self) -> List[int]:
        return self.origin_input_ids[: self.kv_committed_len]

    @property
    def left(self) -> int:
        """Tokens of the prompt that are not computed yet."""
        return len(self.origin_input_ids) - self.kv_committed_len

    def append(self, token: int) -> None:
        self.origin_input_ids.append(token)
        self.keys.append(key_of(self.keys[-1], token))

    def pop(self) -> None:
        self.origin_input_ids.pop()
        self.keys.pop()

    def pop_committed_kv_cache(self) -> int:
        return self.kv_committed_len


def page_means(keys: List[int]) -> List[float]:
    """Representations of the complete pages of a sequence."""
    return [
        sum(keys[i : i + PAGE]) / PAGE for i in range(0, len(keys) // PAGE * PAGE, PAGE)
    ]
