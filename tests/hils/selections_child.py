# SPDX-License-Identifier: Apache-2.0
"""Logical pages that the last token of prompts selects: ``python selections_child.py CHECKPOINT JOB.json RESULT.json``.

The job is a list of prompts; the result has for each the pages by HSA layer and KV head, -1 for none.
"""

import json
import sys
from pathlib import Path


def main(checkpoint, job_path, result_path):
    import sglang as sgl

    from sglang.srt.layers.attention.hsa.passes.landmark_reference import LandmarkReferencePass

    record = Path(result_path).with_suffix(".lines")
    count_rows = LandmarkReferencePass.count_rows

    def recording(self, selected, valid):
        count_rows(self, selected, valid)
        pages = self.metadata.real_page_table[0].tolist()
        last = selected[self.landmark_rows.tokens[-1]].tolist()
        logical = [[pages.index(page) if page >= 0 else -1 for page in head] for head in last]
        with record.open("a") as stream:
            stream.write(json.dumps(logical) + "\n")

    LandmarkReferencePass.count_rows = recording  # the scheduler is a fork
    prompts = json.loads(Path(job_path).read_text())
    found = []
    with sgl.Engine(
        model_path=checkpoint, attention_backend="hsa", skip_tokenizer_init=True, max_total_tokens=8192, device="cpu",
        dtype="float32", log_level="error", random_seed=0,
    ) as engine:  # fmt: skip
        for prompt in prompts:
            record.unlink(missing_ok=True)
            engine.generate(input_ids=[prompt], sampling_params=dict(max_new_tokens=1))
            layers = [json.loads(line) for line in record.read_text().splitlines()]
            found.append(layers)
    Path(result_path).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
