# SPDX-License-Identifier: Apache-2.0
"""Resolves, from source text alone, what the overlay's own files use of SGLang."""
