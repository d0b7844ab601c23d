"""The operator's benchmark: shapes, layouts of peers, and a comparison that judges rightly."""

import sys

import pytest
import torch

from benchmarks.gpu import operator_speed, peers
from src.ops import dcnv3_reference

SHAPE = (9, 11, 32, 2)


def test_shapes_are_the_stages_of_the_networks():
    stages = operator_speed.stages()
    assert len(stages) == 3 * 4 * 4
    assert stages["T.s1@224"] == (56, 56, 64, 4)
    assert stages["T.s4@coco"] == (25, 42, 512, 32)
    assert stages["H.s3@640"] == (40, 40, 1280, 40)
    assert all(channels // groups in (16, 32) for *_, channels, groups in stages.values())
    assert {stage for stage, *_ in operator_speed.DECIDING} <= stages.keys()
    assert len(set(operator_speed.DECIDING)) == len(operator_speed.DECIDING)


def test_layouts_of_the_peers():
    offset = torch.arange(36.0).view(1, 1, 1, 36)
    logits = 100 + torch.arange(18.0).view(1, 1, 1, 18)
    _, packed = peers.one_after_the_other(torch.empty(0), offset, logits, 2)
    packed = packed[0, 0, 0]
    assert packed.shape == (56,)
    assert packed[:18].tolist() == list(range(18))
    assert packed[18:27].sum().item() == pytest.approx(1.0)
    assert packed[27:29].tolist() == [18, 19]
    assert packed[54:].tolist() == [0, 0]
    _, triples = peers.in_triples(torch.empty(0), offset, logits, 2)
    assert triples[0, 0, 0, :6].tolist() == [0, 1, 100, 2, 3, 101]
    assert triples[0, 0, 0, 27:30].tolist() == [18, 19, 109]


def problem(dtype):
    tensors = operator_speed.make_tensors(2, SHAPE, dtype, "cpu")
    exact = operator_speed.exact_results(tensors, SHAPE[-1])
    return tensors, exact, operator_speed.near_integers(tensors[1], SHAPE[-1])


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_the_operator_is_right(name):
    tensors, exact, near = problem(operator_speed.DTYPES[name])
    found = operator_speed._errors_of(
        peers.PATHS["ours"], tensors[:3], tensors[3], exact, near, SHAPE[-1]
    )
    assert operator_speed.judge(found, operator_speed.TOLERANCES[name]) is None
    assert 0 < near.double().mean() < 0.1


def test_the_other_side_of_an_integer_is_not_an_error():
    """Positions a millionth away from an integer, on either side of it."""
    tensors, _, _ = problem(torch.float64)
    x, offset, mask, grad = tensors
    offset[0, 4, 4, :4] = torch.tensor([1 - 1e-7, 0.3, 2 + 1e-7, -0.4], dtype=torch.float64)
    exact = operator_speed.exact_results([x, offset, mask, grad], SHAPE[-1])
    moved = offset.clone()
    moved[0, 4, 4, 0], moved[0, 4, 4, 2] = 1 + 1e-7, 2 - 1e-7
    got = operator_speed.exact_results([x, moved, mask, grad], SHAPE[-1])
    tolerance = operator_speed.TOLERANCES["fp32"]
    nowhere = torch.zeros_like(offset, dtype=torch.bool)
    assert operator_speed.judge(operator_speed.errors(got, exact, nowhere), tolerance)
    near = operator_speed.near_integers(offset, SHAPE[-1])
    assert near[0, 4, 4, :4].all()
    assert operator_speed.judge(operator_speed.errors(got, exact, near), tolerance) is None


@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("value", [1.0, float("nan")])
def test_a_wrong_value_is_found_in_every_tensor(part, value):
    _, exact, near = problem(torch.float64)
    got = [t.clone() for t in exact]
    index = (~near).nonzero()[5].tolist() if part == 2 else [1, 3, 2, 1]
    got[part][tuple(index)] += value
    found = operator_speed.judge(operator_speed.errors(got, exact, near), 1e-4)
    assert found.startswith(f"wrong: {operator_speed.PARTS[part]}")


def test_a_zero_gradient_of_offsets_is_found():
    _, exact, near = problem(torch.float64)
    got = [*exact[:2], torch.zeros_like(exact[2]), exact[3]]
    found = operator_speed.errors(got, exact, near)
    assert found["grad offset"] > 0.9
    assert operator_speed.judge(found, 3e-2).startswith("wrong: grad offset")


def test_a_peer_that_is_wrong_or_fails_is_left_out_with_the_reason():
    def wrong(x, offset, logits, groups):
        return dcnv3_reference(x, offset, logits, groups=groups, mask_softmax=False)

    def fails(x, offset, logits, groups):
        raise RuntimeError("no such shape\nand more")

    paths = {
        "ours": peers.PATHS["ours"],
        "wrong": peers.Path(wrong, peers.as_they_are),
        "fails": peers.Path(fails, peers.as_they_are),
        "half": peers.Path(fails, peers.as_they_are, dtypes=(torch.float16,)),
    }
    args = operator_speed.parser("Try it out.").parse_args(["--device", "cpu"])
    args.seconds, args.bandwidth = 0.01, 1e9
    row = operator_speed.measure(("T.s4@224", 2, "fp32"), paths, args)
    assert row["left out"]["fails"] == "RuntimeError: no such shape"
    assert row["left out"]["wrong"].startswith("wrong: output")
    assert row["forward"].keys() == row["forward_backward"].keys() == {"ours"}
    assert row["share"]["forward"] > 0


def test_a_folder_of_peers_is_searched_first_and_missing_ones_have_reasons(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "DCNv3.py").write_text("raise OSError('libdcnv3.so: undefined symbol')\n")
    (tmp_path / "deformops").mkdir()
    (tmp_path / "deformops" / "__init__.py").touch()
    (tmp_path / "deformops" / "registry.py").write_text("def attn(*args, **kwargs): ...\n")
    for name in ("deformops", "deformops.registry"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    peers.search_first(tmp_path)
    paths, missing = peers.importable("cuda")
    assert "deformops" in paths
    assert missing["official"] == "OSError: libdcnv3.so: undefined symbol"
    assert missing["DCNv4"].startswith("ModuleNotFoundError")
    for name in ("deformops", "deformops.registry", "DCNv3"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert peers.importable("cpu")[1]["DCNv4"] == "runs on a GPU only"


def test_geometric_means_over_rows_where_both_are_right():
    times = {"ours": 1.0, "plain": 8.0, "official": 2.0}
    row = {"forward": times, "forward_backward": times}
    rows = [row, {**row, "forward": {"ours": 1.0, "plain": 2.0}}, {"note": "out of memory"}]
    means = operator_speed.geometric_means(rows)
    assert means["plain"]["forward"] == pytest.approx(4.0)
    assert means["official"] == {"forward": 2.0, "forward_backward": 2.0}
