"""Claims of scans by tasks that know nothing of each other."""

import os
import time

import pytest

from unscanned.cluster.claims import Claims
from unscanned.cluster.summary import CLAIMS, Row, Summary, claim_path, finished_rows, read_summary
from unscanned.errors import BusyError, DatasetError, SettingsError

ROWS = [Row(f"sub-{number}", f"scan-{number}") for number in range(6)]


def tasks(out, *owners, lost_after_s=900.0):
    return [Claims(out, owner, lost_after_s=lost_after_s) for owner in owners]


def names(taken):
    return [row.output for row, _ in taken]


def test_of_two_tasks_at_once_each_scan_is_claimed_by_one(tmp_path):
    first, second = tasks(tmp_path, "a", "b")
    one, two = first.each(ROWS, 0, 3), second.each(ROWS, 3, 3)
    taken = [next(one), next(two), next(two), next(one), next(one), next(two)]
    assert sorted(names(taken)) == [row.output for row in ROWS]
    assert list(one) == list(two) == []


def test_a_finished_scan_is_nobodys_to_take_and_leaves_no_file_of_its_own(tmp_path):
    first, second = tasks(tmp_path, "a", "b")
    for row, _ in first.each(ROWS, 0, 6):
        first.finish(Row(row.output, row.scan, "written", "", 1.5, "a"))
    assert list(second.each(ROWS, 0, 6)) == []
    assert [path.name for path in (tmp_path / CLAIMS).iterdir()] == ["a.jsonl"]
    assert finished_rows(tmp_path)["sub-3"] == Row("sub-3", "scan-3", "written", "", 1.5, "a")


def test_a_claim_without_a_sign_of_life_is_taken_up_again_and_after_three_times_given_up(tmp_path):
    for number in range(3):
        (task,) = tasks(tmp_path, f"task-{number}", lost_after_s=60)
        assert next(task.each(ROWS[:1], 0, 1)) == (ROWS[0], True)  # and it is killed here
        old = time.time() - 61
        os.utime(claim_path(tmp_path, "sub-0"), (old, old))
    (last,) = tasks(tmp_path, "last", lost_after_s=60)
    assert next(last.each(ROWS[:1], 0, 1)) == (ROWS[0], False)


def test_a_claim_that_shows_signs_of_life_stays(tmp_path):
    first, second = tasks(tmp_path, "a", "b", lost_after_s=60)
    assert next(first.each(ROWS[:1], 0, 1))
    old = time.time() - 61
    os.utime(claim_path(tmp_path, "sub-0"), (old, old))
    first.renew(ROWS[0])
    assert list(second.each(ROWS[:1], 0, 1)) == []


def test_a_task_that_is_put_back_into_the_queue_goes_on_with_its_own_claim_at_once(tmp_path):
    before, again = tasks(tmp_path, "job-1-0", "job-1-0")
    next(before.each(ROWS, 2, 6))
    assert next(again.each(ROWS, 2, 6)) == (ROWS[2], True)


def test_a_claim_that_was_cut_off_while_it_was_written_is_lost_with_its_age(tmp_path):
    first, second = tasks(tmp_path, "a", "b", lost_after_s=60)
    path = claim_path(tmp_path, "sub-0")
    path.write_text('{"output": "su')
    assert list(first.each(ROWS[:1], 0, 1)) == []
    old = time.time() - 61
    os.utime(path, (old, old))
    assert names(second.each(ROWS[:1], 0, 1)) == ["sub-0"]


def test_a_line_that_a_killed_task_left_cut_off_spoils_no_other(tmp_path):
    (task,) = tasks(tmp_path, "a")
    (tmp_path / CLAIMS / "a.jsonl").write_text('{"output": "sub-9", "sc')
    task.finish(Row("sub-0", "scan-0", "written"))
    assert list(finished_rows(tmp_path)) == ["sub-0"]


def test_the_summary_has_what_tasks_said_and_who_is_at_work(tmp_path):
    with Summary.of(tmp_path, ROWS):
        pass
    (task,) = tasks(tmp_path, "a")
    each = task.each(ROWS, 0, 6)
    row, _ = next(each)
    task.finish(Row(row.output, row.scan, "failed", "no head", 2.0, "a"))
    next(each)
    rows = read_summary(tmp_path)
    assert (rows["sub-0"].status, rows["sub-0"].reason) == ("failed", "no head")
    assert (rows["sub-1"].status, rows["sub-1"].worker) == ("running", "a")
    assert rows["sub-2"].status == "waiting"


def test_a_folder_in_which_tasks_work_is_no_other_cohorts(tmp_path):
    (task,) = tasks(tmp_path, "job-7-0")
    next(task.each(ROWS, 0, 6))
    with pytest.raises(BusyError, match="job-7-0"), Summary.of(tmp_path, ROWS):
        pass
    old = time.time() - 1000
    os.utime(claim_path(tmp_path, "sub-0"), (old, old))
    with Summary.of(tmp_path, ROWS):
        assert not (tmp_path / CLAIMS).exists()


def test_rows_of_other_scans_stay_and_who_made_a_volume_stays_known(tmp_path):
    from unscanned.cluster.cases import Outcome

    with Summary.of(tmp_path, ROWS[:2]) as summary:
        summary.take("sub-0", Outcome(True, seconds=2.5, worker="0@node1"), "written")
        summary.take("sub-1", Outcome(error=DatasetError("no head"), seconds=1.0, worker="1@node1"), "written")
    with Summary.of(tmp_path, [ROWS[0], ROWS[2]]) as summary:
        summary.take("sub-0", Outcome(False, seconds=0.1, worker="5@node9"), "skipped")
    rows = read_summary(tmp_path)
    assert rows["sub-0"] == Row("sub-0", "scan-0", "written", "", 2.5, "0@node1")
    assert rows["sub-1"] == Row("sub-1", "scan-1", "failed", "no head", 1.0, "1@node1")
    assert rows["sub-2"].status == "waiting"


def test_another_file_of_that_name_and_a_damaged_summary_are_refused(tmp_path):
    (tmp_path / "summary.csv").write_text("name,age\nx,3\n")
    with pytest.raises(SettingsError, match="something else is there"), Summary.of(tmp_path, ROWS):
        pass
    with pytest.raises(DatasetError, match="not the summary of a cohort"):
        read_summary(tmp_path)
    (tmp_path / "summary.csv").write_text("output,scan,status,reason,seconds,worker\nx,y,written,,soon,\n")
    with pytest.raises(DatasetError, match="not the summary of a cohort"):
        read_summary(tmp_path)
