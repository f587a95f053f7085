# SPDX-License-Identifier: Apache-2.0
"""Qwen3 with a sliding window on every layer: the same weights, what a model finds without selection.

SGLang's own Qwen3 has full attention whatever its configuration says about windows.
"""

from sglang.srt.models.qwen3 import Qwen3ForCausalLM


class Qwen3WindowForCausalLM(Qwen3ForCausalLM):
    """A query sees itself and the ``config.window_only - 1`` tokens before it."""

    def __init__(self, config, *args, **kwargs):
        window = getattr(config, "window_only", 0)
        if window < 1:
            raise ValueError(
                'Qwen3WindowForCausalLM needs a window: add "window_only": 576 to --json-model-override-args'
            )
        super().__init__(config, *args, **kwargs)
        for layer in self.model.layers:
            layer.self_attn.attn.sliding_window_size = self.get_attention_sliding_window_size()

    def get_attention_sliding_window_size(self) -> int:
        """Tokens before a query that it sees."""
        return self.config.window_only - 1


EntryClass = Qwen3WindowForCausalLM
