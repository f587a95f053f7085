# SPDX-License-Identifier: Apache-2.0
"""Llama with a sliding window on every layer: the same weights, what a model finds without selection."""

from sglang.srt.models.llama import LlamaForCausalLM


class LlamaWindowForCausalLM(LlamaForCausalLM):
    """A query sees itself and the ``config.window_only - 1`` tokens before it."""

    def __init__(self, config, *args, **kwargs):
        window = getattr(config, "window_only", 0)
        if window < 1:
            raise ValueError(
                'LlamaWindowForCausalLM needs a window: add "window_only": 576 to --json-model-override-args'
            )
        super().__init__(config, *args, **kwargs)
        for layer in self.model.layers:
            layer.self_attn.attn.sliding_window_size = self.get_attention_sliding_window_size()

    def get_attention_sliding_window_size(self) -> int:
        """Tokens before a query that it sees."""
        return self.config.window_only - 1


EntryClass = LlamaWindowForCausalLM
