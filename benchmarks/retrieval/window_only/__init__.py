# SPDX-License-Identifier: Apache-2.0
"""A package for SGLANG_EXTERNAL_MODEL_PACKAGE: Qwen3 that sees nothing but a sliding window, as a baseline."""
