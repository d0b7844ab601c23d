"""The driver of the GPU benchmarks as it is called, tried out on the CPU."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.__main__ import main
from benchmarks.gpu.first_run import Lines, losses
from benchmarks.gpu.rows import REPORT, ROWS, Rows
from benchmarks.gpu.sections import all_sections, parser
from benchmarks.gpu.tools import kernel_rows

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
def test_one_error_message_without_a_gpu(tmp_path):
    with pytest.raises(SystemExit) as stop:
        main(["--out", str(tmp_path)])
    assert stop.value.code == "The GPU benchmarks need a CUDA device, and PyTorch sees none here."


def test_an_unknown_section_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--sections", "everything"])
    assert "--sections accepts correctness, operator, network" in capsys.readouterr().err


def drive(folder, *arguments):
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--out", str(folder)]
    result = subprocess.run(
        [*command, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return result.stdout


@pytest.mark.slow
def test_operator_and_network_on_the_cpu_and_again(tmp_path):
    names = ["--minutes", "4", "--sections", "operator", "network"]
    output = drive(tmp_path / "out", *names)
    assert "operator: finished" in output
    assert "network: finished" in output
    rows = Rows(tmp_path / "out")
    row = rows.find("operator", "T.s4@224 N=2 fp32")
    assert row["forward"]["plain"] > row["forward"]["ours"] > 0
    assert rows.find("network", "tiny N=2, ours")["training images/s"] > 0
    assert "| official | runs on a GPU only |" in (tmp_path / "out" / REPORT).read_text()
    count = len(rows.read())
    again = ["--resume", str(tmp_path / "out" / ROWS)]
    assert "operator: finished before" in drive(tmp_path / "again", *names, *again)
    assert len(Rows(tmp_path / "again").read()) == count + 1  # the machine


@pytest.mark.slow
def test_a_sample_of_tests_then_all_of_them(tmp_path):
    names = ["--minutes", "5", "--workers", "2", "--sections"]
    drive(tmp_path, *names, "correctness")
    rows = [r for r in Rows(tmp_path).read() if "test" in r]
    assert len({r["key"] for r in rows}) == len(rows) == 60
    assert {r["test"] for r in rows} == {"passed"}
    drive(tmp_path, *names, "suite")
    suite = [r["key"] for r in Rows(tmp_path).read() if r["section"] == "suite"]
    assert suite == [] or not set(suite) & {r["key"] for r in rows}


def arguments(*given):
    return parser("Try it out.").parse_args([*given])


def test_sections_come_in_order_of_value():
    names = [section.name for section in all_sections(arguments())]
    assert names[:4] == ["correctness", "operator", "network", "compiled"]
    assert names[-1] == "suite"


def test_lines_of_the_first_run_are_named_once_and_have_recipes(tmp_path):
    lines = Lines(arguments("--work", str(tmp_path), "--data", str(tmp_path)))
    chains = [*lines.chains(), lines.files()]
    names = [line.name for chain in chains for line in chain]
    assert len(set(names)) == len(names)
    wanted = ["fit detection 16-mixed", "fsdp1", "fsdp2", "export check", "DINO against the CPU"]
    wanted += ["from files: predict", "resume: device to CPU", "peak: T, N=128"]
    assert set(wanted) <= set(names)
    for chain in chains:
        for line in chain:
            if "--config" in line.command:
                assert (ROOT / line.command[line.command.index("--config") + 1]).is_file()


def test_losses_of_the_newest_version(tmp_path):
    assert losses(tmp_path) == "no metrics.csv"
    (tmp_path / "version_0").mkdir()
    (tmp_path / "version_0" / "metrics.csv").write_text("step,train/loss\n0,2.5\n1,\n2,1.25\n")
    assert losses(tmp_path) == "loss 2.500 -> 1.250, 2 values"


def test_the_output_of_nsight_compute_is_understood():
    text = """==PROF== Connected to process 1
"ID","Kernel Name","gpu__time_duration.sum","launch__registers_per_thread"
"","","us","register/thread"
"0","void internimage::forward<float>(Call)","138.2","64"
"1","fill_kernel","17.0","16"
"""
    first, second = kernel_rows(text)
    assert first["kernel"] == "void internimage::forward<float>"
    assert first["time"] == "138.2 us"
    assert second == {"kernel": "fill_kernel", "time": "17.0 us", "registers": "16 register/thread"}
    assert kernel_rows("==ERROR== no permission") == []
