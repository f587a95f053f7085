# SPDX-License-Identifier: Apache-2.0
"""A synthetic SGLang tree, small enough to know every answer by heart, in two releases. Importing a file of it raises."""

from __future__ import annotations

from pathlib import Path

NEVER = 'raise RuntimeError("a map must not import the tree")\n'

REGISTRY = """\
ATTENTION_BACKENDS = {}


def register_attention_backend(name):
    def decorator(fn):
        ATTENTION_BACKENDS[name] = fn
        return fn

    return decorator


@register_attention_backend("alpha")
def create_alpha(runner):
    if runner.use_mla_backend:
        raise ValueError("alpha has no MLA")
    from sglang.srt.layers.attention.alpha import AlphaBackend

    return AlphaBackend(runner)


@register_attention_backend("beta")
def create_beta(runner):
    assert runner.page_size == 1, "beta needs pages of 1"
    if runner.split:
        from sglang.srt.layers.attention.beta import SplitBetaBackend

        return SplitBetaBackend(runner, version=2)
    from sglang.srt.layers.attention.beta import BetaBackend

    return BetaBackend(runner)


@register_attention_backend("old_alpha")
def create_old_alpha(runner):
    return create_alpha(runner)


def attn_backend_wrapper(runner, backend):
    if runner.is_hybrid:
        from sglang.srt.layers.attention.beta import HybridBackend

        return HybridBackend(backend)
    return backend
"""

RUNNER = """\
from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS, attn_backend_wrapper
from sglang.srt.server_args import ServerArgs


class ModelRunner:
    def __init__(self, args: ServerArgs):
        self.args = args

    def initialize(self):
        self.init_attention_backend()

    def init_attention_backend(self):
        self.attn_backend = self._from_name(self.args.get_attention_backends()[0])

    def _from_name(self, name):
        backend = ATTENTION_BACKENDS[name](self)
        return attn_backend_wrapper(self, backend)

    def forward_decode(self, batch):
        self.attn_backend.init_forward_metadata(batch)
        return self.model.forward(batch)

    def forward_extend(self, batch):
        self.attn_backend.init_forward_metadata(batch)
"""

ARGS = """\
class ServerArgs:
    def get_attention_backends(self):
        return self.attention_backend, self.attention_backend

    def choose(self):
        if self.attention_backend is None:
            self.attention_backend = self._default()

    def _default(self):
        if is_hopper():
            return "alpha"
        elif is_hip():
            return "beta"
        else:
            return "old_alpha"


def overrides_of_a_model(args):
    if args.is_small:
        backend = "alpha"
    else:
        backend = "beta"
    found = {"attention_backend": backend, "page_size": 1}
    if args.is_odd:
        found.update(decode_attention_backend="beta")
    found["prefill_attention_backend"] = found.get("attention_backend")
    report(attention_backend=args.attention_backend)
    return found
"""

BASE = """\
class AttentionBackend:
    def init_forward_metadata(self, batch):
        raise NotImplementedError

    def forward(self, q, batch):
        if batch.is_decode():
            return self.forward_decode(q, batch)
        return self.forward_extend(q, batch)

    def forward_decode(self, q, batch):
        raise NotImplementedError

    def forward_extend(self, q, batch):
        raise NotImplementedError
"""

KERNELS = """\
import triton
import triton.language as tl


@triton.jit
def _decode_kernel(q):
    tl.store(q, tl.load(q))


@triton.autotune(configs=[], key=[])
@triton.jit
def _tuned_kernel(q):
    pass


def decode_fwd(q, out=None):
    grid = (len(q),)
    _decode_kernel[grid](q)
    # A tensor that depends on itself must not hide what comes after it.
    q = q.view(-1)
    q = helper(q)
    q = q.view(-1)
    return q


def helper(q):
    q = q + 1
    _tuned_kernel[(1,)](q)
    return q


def unused(q):
    _decode_kernel[(2,)](q)
"""

THIN = """\
import cutlass.cute as cute
import torch


class Fused:
    @cute.jit
    def __call__(self, q):
        cute.copy(q)


class Applied(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q):
        compiled(q)


def compiled(q):
    compiled.cache[q.dtype] = cute.compile(Fused(), q)
    compiled.cache[q.dtype](q)


compiled.cache = {}


def _load():
    from flashlib.fast import attend, plan

    return {"attend": attend, "plan": plan}


def _call(function, q):
    return function(q)


def thin_attend(q):
    return _call(_load()["attend"], q)


def thin_plan(q):
    _call(_load()["plan"], q)
    return Applied.apply(q)
"""

NAMES = 'NAME = "slow_attention"\n'

COMPILED = """\
from .names import NAME


def load_jit(name, cuda_files):
    pass


def load(dtype):
    return load_jit(NAME, cuda_files=[f"{NAME}/{dtype}.cuh", "common.cuh"])


def compiled_attend(q, dtype):
    module = load(dtype)
    return module.attend(q)
"""

ALPHA = """\
from functools import partial

import torch

from sglang.srt.layers.attention.base_attn_backend import AttentionBackend

if available():
    import flashlib
    from flashlib.decode import PagedWrapper


class Updater:
    def __init__(self, owner):
        if owner.sliding:
            self.update = self.update_window
        else:
            self.update = self.update_all

    def update(self, batch):
        raise NotImplementedError

    def update_window(self, batch):
        self.plan(batch.wrapper)

    def update_all(self, batch):
        pass

    def plan(self, wrapper: PagedWrapper):
        wrapper.begin_forward()


class AlphaBackend(AttentionBackend):
    \"\"\"Attends alphabetically. Slowly.\"\"\"

    def __init__(self, runner):
        from sglang.srt.layers.attention.kernels import decode_fwd

        self.decode_fwd = torch.compiler.disable(partial(decode_fwd, out=None))
        self.wrappers = []
        for _ in range(2):
            self.wrappers.append(PagedWrapper(runner.workspace))
        self.updater = Updater(self)

    def init_forward_metadata(self, batch):
        self.updater.update(batch)

    def forward_decode(self, q, batch):
        if batch.paged:
            return self.wrappers[batch.index].run(q)
        return self._run(self.decode_fwd, q)

    def _run(self, function, q):
        return function(q)

    def forward_extend(self, q, batch):
        return flashlib.prefill.trtllm_attend(
            q
            if batch  # a comment inside of an argument
            else "# no comment"
        )

    def forward_mixed(self, q, batch):
        from sglang.srt.layers.attention.compiled import compiled_attend

        return compiled_attend(q, batch.dtype)
"""

BETA = """\
from sglang.srt.layers.attention.alpha import AlphaBackend
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend


class BetaBackend(AlphaBackend):
    def forward_decode(self, q, batch):
        return super().forward_decode(q, batch)


class SplitBetaBackend(AttentionBackend):
    def __init__(self, runner, version=1):
        self.version = version

    def forward_decode(self, q, batch):
        from sglang.srt.layers.attention import kernels

        attend = kernels.helper if self.version == 2 else kernels.decode_fwd
        return attend(q)

    def forward_extend(self, q, batch):
        from sglang.kernels.thin import thin_attend, thin_plan

        thin_plan(q)
        return thin_attend(q)


class HybridBackend(AttentionBackend):
    pass
"""

LAYER = """\
class RadixAttention:
    def forward(self, q, batch):
        return batch.attn_backend.forward(q, batch)
"""

FILES = {
    "__init__.py": "",
    "kernels/thin.py": THIN,
    "srt/layers/attention/__init__.py": "",
    "srt/layers/attention/attention_registry.py": REGISTRY,
    "srt/layers/attention/base_attn_backend.py": BASE,
    "srt/layers/attention/compiled.py": COMPILED,
    "srt/layers/attention/kernels.py": KERNELS,
    "srt/layers/attention/names.py": NAMES,
    "srt/layers/attention/alpha.py": ALPHA,
    "srt/layers/attention/beta.py": BETA,
    "srt/layers/radix_attention.py": LAYER,
    "srt/model_executor/model_runner.py": RUNNER,
    "srt/server_args.py": ARGS,
}


def write(root: Path, files: dict[str, str] = FILES) -> Path:
    """A tree in the repository's layout. The line that forbids the import stands last, so lines stay countable."""
    for name, text in files.items():
        path = root / "python" / "sglang" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + NEVER, encoding="utf-8")
    return root


def next_release() -> dict[str, str]:
    """Another release: a backend gone, one new, one of more classes, a kernel in another file, two lines above a method."""
    files = dict(FILES)
    gone = REGISTRY.index('@register_attention_backend("old_alpha")')
    wrapper = REGISTRY.index("def attn_backend_wrapper")
    gamma = '@register_attention_backend("gamma")\ndef create_gamma(runner):\n    return create_alpha(runner)\n\n\n'
    registry = REGISTRY[:gone] + gamma + REGISTRY[wrapper:]
    second = "    if runner.fast:\n        return create_beta(runner)\n    return AlphaBackend(runner)\n"
    files["srt/layers/attention/attention_registry.py"] = registry.replace("    return AlphaBackend(runner)\n", second)
    cut = KERNELS.index("def helper")
    end = KERNELS.index("def unused")
    tuned = KERNELS[KERNELS.index("@triton.autotune") : KERNELS.index("def decode_fwd")]
    files["srt/layers/attention/helpers.py"] = "import triton\n\n\n" + tuned + KERNELS[cut:end]
    files["srt/layers/attention/kernels.py"] = (
        "from sglang.srt.layers.attention.helpers import helper\n"
        + KERNELS.replace(tuned, "").replace(KERNELS[cut:end], "")
    )
    files["srt/layers/attention/beta.py"] = BETA.replace("class SplitBeta", "x = 1\ny = 2\n\n\nclass SplitBeta")
    return files
