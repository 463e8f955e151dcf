from unscanned.training.log import RunLog, read_log


def test_a_validation_that_was_logged_and_not_saved_is_logged_once(tmp_path):
    log = RunLog(tmp_path)
    for step in (1, 2):
        log.write("step", step=step, l1=0.5)
    log.write("validation", step=2, psnr=20.0)
    log.write("warning", step=2, message="of that validation")
    log.close()  # and here the process was killed
    assert [event["event"] for event in read_log(tmp_path / "log.jsonl")] == ["step", "step", "validation", "warning"]
    RunLog(tmp_path, step=2, validated=0).close()
    assert [event["event"] for event in read_log(tmp_path / "log.jsonl")] == ["step", "step"]


def test_damaged_lines_are_left_out_and_stop_nothing(tmp_path):
    log = RunLog(tmp_path)
    for step in (1, 2):
        log.write("step", step=step, l1=0.5)
    log.close()
    path = tmp_path / "log.jsonl"
    first, second = path.read_bytes().splitlines(keepends=True)
    damaged = b'{"event": "st\xe9p"}\n5\n[]\n{"event": "step"}\n{"step": 2}\n{"event": "step", "step": "2"}\n'
    path.write_bytes(first + damaged + b"[" * 100_000 + b"\n" + second + b'{"event": "cut')
    assert [event["step"] for event in read_log(path)] == [1, 2]
    RunLog(tmp_path, step=2).close()
    assert path.read_bytes() == first + second


def test_what_was_saved_stays_and_what_came_later_goes(tmp_path):
    log = RunLog(tmp_path)
    for event, step in (("step", 1), ("validation", 1), ("step", 2), ("step", 3), ("validation", 3)):
        log.write(event, step=step)
    log.close()
    RunLog(tmp_path, step=2, validated=1).close()
    kept = [(event["event"], event["step"]) for event in read_log(tmp_path / "log.jsonl")]
    assert kept == [("step", 1), ("validation", 1), ("step", 2)]


def test_a_folder_whose_name_is_no_text_gets_its_lines_all_the_same(tmp_path):
    folder = tmp_path / "odd \udcff"
    log = RunLog(folder)
    log.write("step", step=1, l1=0.5)
    log.close()
    assert [event["step"] for event in read_log(folder / "log.jsonl")] == [1]
