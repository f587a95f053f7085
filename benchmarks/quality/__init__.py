# SPDX-License-Identifier: Apache-2.0
"""Quality gates: does HSA answer what dense attention answers, on a pretrained model? See docs/quality.md."""
