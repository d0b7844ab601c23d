"""Rows of the GPU benchmarks: written at once, kept by kills, read again, shown as Markdown."""

import json

from benchmarks.gpu.rows import REPORT, ROWS, Rows, machine


def make_rows(folder, state="first"):
    rows = Rows(folder)
    rows.describe({"state": state, "device": f"card of {state}", "torch": "2.11"})
    return rows


def test_a_row_is_on_disk_as_soon_as_it_is_added(tmp_path):
    rows = make_rows(tmp_path)
    rows.add("operator", "T.s1", forward={"ours": 0.1234567, "plain": 2.0}, note="a | b")
    line = json.loads((tmp_path / ROWS).read_text().splitlines()[-1])
    assert line["forward"]["ours"] == 0.1234567
    report = (tmp_path / REPORT).read_text()
    assert "## card of first, state first" in report
    assert "|  | forward: ours | forward: plain | note |" in report
    assert "| T.s1 | 0.1235 | 2 | a / b |" in report


def test_columns_of_a_dictionary_stay_together(tmp_path):
    rows = make_rows(tmp_path)
    rows.add("operator", "a", forward={"ours": 1}, share=0.5)
    rows.add("operator", "b", forward={"ours": 1, "plain": 3}, share=0.25)
    report = (tmp_path / REPORT).read_text()
    assert "|  | forward: ours | forward: plain | share |" in report
    assert "| a | 1 |  | 0.5 |" in report


def test_other_processes_find_rows_of_the_same_state_alone(tmp_path):
    make_rows(tmp_path, "first").add("operator", "T.s1", value=1)
    again = Rows(tmp_path)
    assert again.find("operator", "T.s1")["value"] == 1
    assert again.find("network", "T.s1") is None
    other = make_rows(tmp_path, "second")
    assert other.find("operator", "T.s1") is None
    assert "card of first" in (tmp_path / REPORT).read_text()


def test_a_line_that_a_kill_has_cut_short_is_left_behind(tmp_path):
    rows = make_rows(tmp_path)
    rows.add("operator", "T.s1", value=1)
    with (tmp_path / ROWS).open("a") as file:
        file.write('{"section": "operator", "key": "T.s2", "val')
    rows.add("operator", "T.s3", value=3)
    again = Rows(tmp_path)
    assert again.find("operator", "T.s1")["value"] == 1
    assert again.find("operator", "T.s2") is None
    assert again.find("operator", "T.s3")["value"] == 3


def test_starts_without_a_result_are_counted(tmp_path):
    rows = make_rows(tmp_path)
    assert rows.attempts("operator", "T.s1") == 0
    rows.start("operator", "T.s1")
    rows.start("operator", "T.s1")
    assert rows.attempts("operator", "T.s1") == 2
    assert rows.find("operator", "T.s1") is None
    rows.add("operator", "T.s1", value=1)
    assert rows.attempts("operator", "T.s1") == 0


def test_tests_are_counted_and_failed_ones_listed(tmp_path):
    rows = make_rows(tmp_path)
    for number in range(3):
        rows.add("suite", f"test_{number}", test="passed", seconds=0.1)
    rows.add("suite", "test_bad", test="failed", why="E  1 != 2")
    report = (tmp_path / REPORT).read_text()
    assert "3 passed, 1 failed" in report
    assert "test_bad" in report
    assert "test_0" not in report


def test_the_state_names_device_versions_and_source():
    facts = machine("cpu")
    operators = {"dcnv3", "dcnv4", "ms_deform_attn"}
    assert {"device", "torch", "source", "state"} | operators <= facts.keys()
    assert facts == machine("cpu")
