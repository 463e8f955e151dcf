import io
import json

from PIL import Image

from unscanned.report.curves import find_logs, training_curves


def write_log(folder, steps=300):
    folder.mkdir(parents=True)
    records = [
        {"event": "step", "step": step, "d_loss": 1 / step, "adversarial": 1.0, "l1": 5.0} for step in range(1, steps)
    ]
    records += [{"event": "validation", "step": step, "psnr": 20 + step / 100, "best": True} for step in (100, 200)]
    text = "\n".join(map(json.dumps, records))
    (folder / "log.jsonl").write_text(text + '\n{"event": "step", "st')


def test_each_stage_of_a_chain_has_its_own_curve(tmp_path):
    write_log(tmp_path / "one")
    write_log(tmp_path / "chain" / "stage-1")
    write_log(tmp_path / "chain" / "stage-2")
    write_log(tmp_path / "chain" / "stage-1" / "fold-1")
    logs = find_logs({"one": tmp_path / "one", "chain": tmp_path / "chain", "none": tmp_path / "none"})
    assert list(logs) == ["one", "chain, stage 1", "chain, stage 2"]


def test_curves_are_drawn_from_logs_and_left_out_without(tmp_path):
    write_log(tmp_path / "one")
    png = training_curves({"one": tmp_path / "one"})
    assert png is not None
    assert png.startswith(b"\x89PNG")
    assert training_curves({"none": tmp_path / "none"}) is None
    assert training_curves({}) is None


def test_values_that_are_no_numbers_leave_gaps(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"event": "step", "step": 1, "d_loss": null}\n')
    assert training_curves({"odd": tmp_path}) is None


def test_the_gradient_difference_term_has_a_curve_where_a_log_has_it(tmp_path):
    write_log(tmp_path / "one")
    without = training_curves({"one": tmp_path / "one"})
    with open(tmp_path / "one" / "log.jsonl", "a") as file:
        file.write('\n{"event": "step", "step": 300, "gdl": 0.2}\n{"event": "step", "step": 301, "gdl": 0.1}\n')
    with_term = training_curves({"one": tmp_path / "one"})
    heights = [Image.open(io.BytesIO(png)).height for png in (without, with_term)]
    assert heights[1] > 1.4 * heights[0]


def test_further_runs_of_an_arm_are_paler_lines_of_its_colour(tmp_path):
    write_log(tmp_path / "seed-0")
    write_log(tmp_path / "seed-1")
    log = tmp_path / "seed-1" / "log.jsonl"
    log.write_text(log.read_text().replace('"psnr": 2', '"psnr": 3'))

    def pixels(**further):
        image = Image.open(io.BytesIO(training_curves({"one": tmp_path / "seed-0"}, further)))
        return image.size, {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}

    size, alone = pixels()
    size_of_both, both = pixels(one=[tmp_path / "seed-1"])
    assert size_of_both == size  # no second name below
    blue = (0x00, 0x72, 0xB2)
    paler = tuple(round(255 - 0.4 * (255 - part)) for part in blue)
    assert blue in alone
    assert any(max(abs(a - b) for a, b in zip(colour, paler, strict=True)) <= 2 for colour in both - alone)
