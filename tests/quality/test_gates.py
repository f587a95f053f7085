# SPDX-License-Identifier: Apache-2.0
"""The gates on rows made by hand, what is written about them, and the picture."""

import json
from xml.etree import ElementTree

import pytest
from benchmarks.quality import __main__ as command
from benchmarks.quality import arms, gates, measure, picture, report

SPARSE = dict(rows_dense=1, rows_sparse=100, pages_candidate=1000, pages_selected=300, reprs_written=9, reprs_healed=0)


def row(role, keys=38, ppl=10.0, context=4096, counters=SPARSE, keys_dense=38, ppl_dense=10.0):
    arm = arms.Arm(role, role, () if role == arms.DEFAULT else (("budget", "16"),))
    info = dict(hsa_chunk_repr="slow_keys", hsa_selection_strategy="head", hsa_topk=32, hsa_layers="all")
    found = dict(context=context, keys=keys, keys_total=40, ppl=ppl, ppl_tokens=800)
    return report.row(arm, found, dict(keys=keys_dense, ppl=ppl_dense), info, counters, 1.23)


def judge(*rows, retrieval=(), limits=gates.FULL):
    return gates.judge(list(rows), list(retrieval), limits)


def test_everything_holds_at_the_limits():
    rows = row(arms.DEFAULT, keys=36, ppl=10.02), row(arms.HALF, keys=34, ppl=10.09)
    assert judge(*rows) == []
    assert judge(*rows, row(arms.EXTRA, keys=0, ppl=99.0)) == []  # reported, not judged


@pytest.mark.parametrize(
    "rows, failure",
    [
        ([row(arms.DEFAULT, keys=35), row(arms.HALF)], "default at 4,096 tokens: 35 keys, dense attention 38"),
        ([row(arms.DEFAULT, ppl=10.04), row(arms.HALF)], "default at 4,096 tokens: perplexity +0.40 %"),
        ([row(arms.DEFAULT, ppl=float("nan")), row(arms.HALF)], "default at 4,096 tokens: perplexity +nan %"),
        ([row(arms.DEFAULT), row(arms.HALF, keys=33)], "half budget at 4,096 tokens: 33 keys, dense attention 38"),
        ([row(arms.DEFAULT), row(arms.HALF, ppl=10.11)], "half budget at 4,096 tokens: perplexity +1.10 %"),
        ([row(arms.DEFAULT), row(arms.DEFAULT, keys=0, context=7500), row(arms.HALF)], "default at 7,500 tokens: 0 keys"),
        ([row(arms.DEFAULT)], "half budget: not measured"),
    ],
)
def test_one_failure(rows, failure):
    [found] = judge(*rows)
    assert found.startswith(failure)


@pytest.mark.parametrize("wrong", [dict(rows_sparse=0), dict(pages_selected=1000), dict(pages_selected=0)])
def test_an_arm_that_leaves_nothing_out_fails(wrong):
    rows = row(arms.DEFAULT), row(arms.HALF), row(arms.EXTRA, counters={**SPARSE, **wrong})
    assert judge(*rows) == ["extra at 4,096 tokens: nothing was left out"]


def test_a_better_perplexity_is_no_failure():
    assert judge(row(arms.DEFAULT, keys=40, ppl=9.0), row(arms.HALF)) == []


def test_the_control_has_to_fail():
    good = row(arms.DEFAULT)
    assert judge(good, row(arms.CONTROL, keys=20), limits=gates.SMALL) == []
    assert judge(good, row(arms.CONTROL, ppl=11.0), limits=gates.SMALL) == []
    [failure] = judge(good, row(arms.CONTROL), limits=gates.SMALL)
    assert failure == "control: holds, so the gate of this tier cannot fail"


def suite(points):
    scores = [
        dict(task=task, length=4096, depth=depth, samples=20, exact=share / 100, recall=1.0)
        for task, share in points.items() for depth in (0.1, 0.5, None)
    ]  # fmt: skip
    return dict(scores=scores)


def test_retrieval_tasks():
    dense = suite({"single": 90.0, "common": 1.0, "multikey": 50.0})
    rows = measure.suite_rows(dense, suite({"single": 88.0, "common": 0.0, "multikey": 47.5}))
    assert {r["task"]: (r["points_dense"], r["points"], r["unable"]) for r in rows} == {
        "single": (90, 88, False), "common": (1, 0, True), "multikey": (50, 47.5, False)
    }  # fmt: skip
    failures = judge(row(arms.DEFAULT), row(arms.HALF), retrieval=rows)
    assert failures == ["multikey at 4,096 tokens: 47.5, dense attention 50.0"]
    assert "cannot do it" in report.suite_table(rows).splitlines()[1]


def test_rows_of_gates_json(tmp_path):
    made = row(arms.DEFAULT, keys=37, ppl=10.01)
    assert list(made) == list(report.ROW)
    assert made["default"] is True and row(arms.HALF)["default"] is False
    assert (made["keys"], made["keys_dense"], made["keys_total"]) == (37, 38, 40)
    assert (made["ppl"], made["ppl_dense"], made["ppl_loss"], made["share"]) == (10.01, 10.0, 0.1, 0.3)
    path = tmp_path / "gates.json"
    report.save(path, dict(rows=[made]))
    assert json.loads(path.read_text()) == dict(rows=[made])
    assert [file.name for file in tmp_path.iterdir()] == ["gates.json"]


def test_command_without_folders():
    given = ["--tier", "full", "--gguf", "/a/b/c.gguf", "--out=/x/y", "--server-args", "--a 1 --b"]
    wanted = 'python -m benchmarks.quality --tier full --gguf c.gguf --out=y --server-args "--a 1 --b"'
    assert report.command(given) == wanted


def test_declared_gates_name_their_numbers():
    lines = "\n".join(gates.declared(gates.FULL, True))
    for said in ("less 2, perplexity within 0.3 %", "less 4, perplexity within 1 %", "2 points", "pages_selected < pages_c"):
        assert said in lines
    assert "must NOT hold" in "\n".join(gates.declared(gates.SMALL, False))


def test_picture():
    rows = [row(arms.DEFAULT), row(arms.HALF, keys=30, ppl=10.2), row(arms.DEFAULT, context=7500, keys=0)]
    drawn = picture.draw(rows, "a title & more")
    assert drawn == picture.draw(rows, "a title & more")
    words = [element.text for element in ElementTree.fromstring(drawn).iter() if element.text and element.text.strip()]
    for said in ("a title & more", "4,096 tokens", "7,500 tokens", "38 of 40", "30", "+2.00 %", "dense attention"):
        assert said in words, said
    assert "slow_keys, head, 32 pages (30%), default" in words


def test_what_cannot_be_read_ends_with_one_line(tmp_path, capsys):
    assert command.main(["--out", str(tmp_path), "--arm", "kind", "--device", "cpu"]) == 2
    assert command.main(["--out", str(tmp_path), "--gguf", str(tmp_path / "none"), "--device", "cpu"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("quality: error: cannot read 'kind' of the arm 'kind'")
    assert "none is not there; give the SmolLM2" in second
