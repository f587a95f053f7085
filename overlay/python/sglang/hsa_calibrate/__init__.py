# SPDX-License-Identifier: Apache-2.0
"""Choose HSA's options for a model: python -m sglang.hsa_calibrate --model DIR --text FILES

    __main__.py      options, order of work, exit status
    loading.py       checkpoint and texts, and what is refused of them
    probe.py         what the model's attention layers are
    sparse.py        attention of a block of query rows, dense or by pages
    simulation.py    a forward pass of transformers in which attention is HSA's
    measure.py       perplexity and attended mass of one setting
    recommend.py     the cheapest setting that keeps the loss
    report.py        table, options line, JSON
    trace.py         pages that the rows of an answer selected
    page.py          the HTML page of traces; page_style.py, page_script.py
"""


class CalibrateError(Exception):
    """What was asked for cannot be done; the message is one line that says why."""
