# SPDX-License-Identifier: Apache-2.0
"""Reads an SGLang tree with `ast` and says how its attention backends reach their kernels."""
