# SPDX-License-Identifier: Apache-2.0
"""Models that read images: which are served, and with what. tests/hsa/test_images.py compares their tokens."""

from types import SimpleNamespace

import pytest

from sglang.srt.layers.attention.hsa import compat, refusals
from sglang.srt.layers.attention.hsa.model_refusals import SERVED_WITH_IMAGES
from sglang.test.attention.hsa_fixtures import server_args, write_model_config
from sglang.test.attention.hsa_refused import ASKED_OF_IMAGES
from sglang.test.attention.hsa_release import change

needs_images = pytest.mark.skipif(
    not compat.graphs_hold_metadata(), reason="refused with SGLang 0.5.12 and earlier"
)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Arguments of a server, and the configuration of its model, which reads no images."""
    args = server_args(write_model_config(tmp_path_factory.mktemp("qwen3")))
    return args, compat.model_config(args)


def reading_images(model, architecture):
    config = SimpleNamespace(architectures=[architecture])
    return SimpleNamespace(
        **{**vars(model), "hf_config": config, "is_multimodal": True}
    )


@pytest.mark.parametrize(
    "architecture", [*sorted(SERVED_WITH_IMAGES), "Gemma3ForConditionalGeneration"]
)
def test_only_models_that_were_compared_are_served(served, architecture):
    args, model = served
    compared = architecture in SERVED_WITH_IMAGES and compat.graphs_hold_metadata()
    changed = reading_images(model, architecture)
    assert refusals.refuses_model(args, changed) != compared
    if compared:
        refusals.check(args, changed)


@needs_images
@pytest.mark.parametrize("feature", ASKED_OF_IMAGES)
def test_refused_of_models_that_read_images(tmp_path, feature):
    args = server_args(write_model_config(tmp_path))
    model = compat.model_config(args)
    change(args, **ASKED_OF_IMAGES[feature])
    refusals.check(compat.arguments(args), model)
    model = reading_images(model, "Qwen3VLForConditionalGeneration")
    with pytest.raises(ValueError, match=f"does not support {feature} "):
        refusals.check(compat.arguments(args), model)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-v"]))
