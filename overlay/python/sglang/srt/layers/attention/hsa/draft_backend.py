# SPDX-License-Identifier: Apache-2.0
"""The multi-step draft of speculative decoding on HSA: one backend's kernels, seen as one backend per draft step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sglang.srt.layers.attention.hsa.backend import KERNELS, HSAAttnBackend

if TYPE_CHECKING:
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.model_executor.model_runner import ModelRunner


def make_draft_backend(
    model_runner: ModelRunner, draft_steps: int = 0
) -> HSAAttnBackend:
    """A backend of a draft model: of its multi-step draft, or with no steps of its extend passes.

    Raises:
        ValueError: for a draft model with layers that decode leaves to the dense backend.
    """
    # The references have no passes over draft tokens.
    backend = HSAAttnBackend(model_runner, draft_steps, KERNELS)
    if backend.decode_needs_dense:
        raise ValueError(
            "--attention-backend hsa does not draft with a model that has sliding-window layers; add --speculative-draft-attention-backend triton."
        )
    return backend


class HSADraftStep(HSAAttnBackend):
    """Attention of one draft step: each request's newest draft token over what is committed and drafted."""

    def __init__(self, backend: HSAAttnBackend, step: int):
        # All that a backend is, with a pass of its own; nothing is made twice.
        vars(self).update(vars(backend))
        self.forward_pass = backend.decode.steps[step]

    def init_forward_metadata(self, forward_batch: ForwardBatch):
        """Nothing: ``HSAMultiStepDraftBackend`` prepares all steps at once."""


class HSAMultiStepDraftBackend:
    """Backends of the consecutive draft steps of one round.

    Args:
        model_runner: of the draft model.
        topk: draft tokens per step and branch; HSA drafts chains, so 1.
        speculative_num_steps: draft tokens per round; the first comes from the draft's extend pass.

    Raises:
        ValueError: for branching drafts, and for a draft model with layers that decode leaves to the dense backend.
    """

    def __init__(
        self, model_runner: ModelRunner, topk: int, speculative_num_steps: int
    ):
        if topk != 1:
            raise ValueError(
                f"--attention-backend hsa drafts chains; use --speculative-eagle-topk 1, not {topk}."
            )
        self.backend = make_draft_backend(model_runner, speculative_num_steps - 1)
        self.attn_backends = [
            HSADraftStep(self.backend, step)
            for step in range(speculative_num_steps - 1)
        ]
        self.needs_cpu_seq_lens = self.backend.needs_cpu_seq_lens

    def init_forward_metadata(self, forward_batch: ForwardBatch):
        self.backend.init_forward_metadata(forward_batch)

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int):
        self.backend.init_cuda_graph_state(max_bs, max_num_tokens)

    def init_forward_metadata_out_graph(
        self, forward_batch: ForwardBatch, in_capture: bool = False
    ):
        self.backend.init_forward_metadata_out_graph(forward_batch, in_capture)

    def init_forward_metadata_in_graph(self, forward_batch: ForwardBatch):
        self.backend.init_forward_metadata_in_graph(forward_batch)

    # Until 0.5.12 SGLang calls these two instead.

    def init_forward_metadata_capture_cuda_graph(self, forward_batch: ForwardBatch):
        self.backend.init_forward_metadata_capture_cuda_graph()

    def init_forward_metadata_replay_cuda_graph(
        self, forward_batch: ForwardBatch, bs: int
    ):
        self.backend.init_forward_metadata_replay_cuda_graph()
