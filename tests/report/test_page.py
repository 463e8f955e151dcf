import html.parser
import json
import re
import shutil

import pytest
from cohort import write_cohort

from unscanned.errors import DatasetError, SettingsError
from unscanned.evaluation.evaluate import evaluate
from unscanned.files import read_json, write_json
from unscanned.report.page import write_report

ATTACK = "<script>alert(1)</script>"


class Elements(html.parser.HTMLParser):
    """Counts elements and collects what would be fetched and what stands in scripts."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.links, self.open = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag if tag != "script" or not attributes else "script of data")
        self.links += [value for name, value in attributes if name in ("src", "href", "action", "srcset", "data")]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    root = tmp_path_factory.mktemp("cohort")
    raw, arms = write_cohort(root, ("01", "02", "03"), {"good": 0.02, "poor": 0.1})
    shutil.rmtree(arms["poor"] / "sub-03")
    return evaluate(raw, arms, root / "evaluation", subjects=("02", "03"), training=("01",))


@pytest.fixture(scope="module")
def page(evaluated, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "report.html"
    run = tmp_path_factory.mktemp("run")
    (run / "settings.toml").write_text('preset = "adv"\n')
    (run / "log.jsonl").write_text('{"event": "step", "step": 1, "d_loss": 1.0, "adversarial": 1.0, "l1": 2.0}\n')
    path = write_report(evaluated.folder, out, runs={"good": run}, details={"Run": {"command": "unscanned"}})
    assert path == out
    return out.read_text(encoding="utf-8")


def test_the_page_asks_nothing_of_any_server(page):
    for link in Elements(page).links:
        assert link.startswith(("data:image/", "#"))
    assert not re.search(r"url\((?!data:image/)", page)
    assert "default-src 'none'" in page


def test_the_page_has_the_table_the_figures_and_the_browser_of_each_case(page):
    headings = (
        "Verdict",
        "Look at sub-02",
        "Scores",
        "Paired differences inside the head",
        "Training",
        "Patches",
        "Other cases",
    )
    for heading in (*headings, "Failures", "provenance"):
        assert f"{heading}</h2>" in page
    # The first case is in the viewer; the slices of the other one are there to browse.
    assert page.count('id="viewer-0-') == 5
    assert page.count('class="browser"') == 1
    assert page.count("data:image/png") == 1 + 1 + 2
    # Source, one arm and the target: the other arm failed for this case.
    assert page.count("data:image/webp") == 3


def test_the_scores_of_the_page_are_those_of_the_evaluation(page, evaluated):
    summary = evaluated.content.arms["good"]["head"]
    assert f"{summary['mae'].mean:.3f} <small>({summary['mae'].sd:.3f})</small>" in page
    assert f"{summary['psnr'].mean:.2f} <small>({summary['psnr'].sd:.2f})</small>" in page
    assert "1 of 2" in page


def test_a_failed_case_has_its_reason(page):
    assert page.count("the synthetic volume is missing") == 2


def test_settings_and_further_details_are_shown(page):
    assert "preset = &#34;adv&#34;" in page
    assert "&#34;command&#34;: &#34;unscanned&#34;" in page


def test_what_a_file_says_is_escaped_everywhere(evaluated, tmp_path):
    content = read_json(evaluated.folder / "evaluation.json")
    text = ATTACK + "\"'>\n../.."

    def poison(value):
        if isinstance(value, dict):
            return {key.replace("good", text): poison(item) for key, item in value.items()}
        if isinstance(value, list):
            return [poison(item) for item in value]
        return value.replace("good", text).replace("sub-02", text) if isinstance(value, str) else value

    poisoned = poison(content)
    for case, original in zip(poisoned["cases"], content["cases"], strict=True):
        case["source"], case["target"] = original["source"], original["target"]
        case["synthetic"] = dict(zip(case["synthetic"], original["synthetic"].values(), strict=True))
    poisoned["warnings"] = [text]
    poisoned["created"] = text
    write_json(tmp_path / "evaluation.json", poisoned)
    page = write_report(tmp_path, tmp_path / "report.html", details={text: text}).read_text(encoding="utf-8")
    assert ATTACK not in page
    assert Elements(page).tags.count("script") == 1
    assert page.count("&lt;script&gt;") > 20
    assert page.count("\\u003cscript>") == 3


def test_a_case_whose_files_are_gone_has_the_reason_in_place_of_pictures(evaluated, tmp_path):
    content = read_json(evaluated.folder / "evaluation.json")
    content["cases"][0]["target"] = str(tmp_path / "gone.nii.gz")
    write_json(tmp_path / "evaluation.json", content)
    page = write_report(tmp_path, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "No pictures: " in page
    assert "gone.nii.gz" in page
    assert "Look at sub-03" in page
    assert page.count('class="browser"') == 0


def test_the_cases_of_the_viewer_can_be_chosen(evaluated, tmp_path):
    page = write_report(evaluated.folder, tmp_path / "report.html", cases=["sub-03", "02"]).read_text(encoding="utf-8")
    assert '<option value="0">sub-02</option><option value="1">sub-03</option>' in page
    assert {f'id="viewer-{case}-0"' in page for case in (0, 1)} == {True}
    with pytest.raises(SettingsError, match=r"case sub-09: no such case .* expected sub-02, sub-03"):
        write_report(evaluated.folder, tmp_path / "other.html", cases=["02", "sub-09"])
    assert not (tmp_path / "other.html").exists()


def test_volumes_that_have_no_room_are_named_with_the_reason(evaluated, tmp_path):
    page = write_report(evaluated.folder, tmp_path / "report.html", limit_mb=0.06).read_text(encoding="utf-8")
    told = re.search(r"Left out of the viewer: ([^.]+)\. All volumes would take [\d.]+ MB .* 0.06 MB", page)
    assert told is not None
    assert "regression" in told[1]
    assert "T2 (acquired)" not in told[1]
    assert "only the voxels of the head are in this page" in page
    page = write_report(evaluated.folder, tmp_path / "report.html", limit_mb=0.001).read_text(encoding="utf-8")
    assert 'class="viewer"' not in page
    assert "Left out of the viewer: T2 (acquired), PD (source), good, poor, regression" in page
    assert page.count('class="browser"') == 2


def test_an_evaluation_without_a_case_has_its_tables_and_says_what_is_missing(evaluated, tmp_path):
    content = read_json(evaluated.folder / "evaluation.json")
    content["cases"] = []
    write_json(tmp_path / "evaluation.json", content)
    page = write_report(tmp_path, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "names no case, so there are no pictures and no viewer" in page
    assert f"{evaluated.content.arms['good']['head']['mae'].mean:.3f}" in page
    assert 'class="viewer"' not in page


def test_a_case_of_one_arm_only_has_its_viewer_and_names_what_is_missing(evaluated, tmp_path):
    content = read_json(evaluated.folder / "evaluation.json")
    content["cases"] = content["cases"][1:]
    write_json(tmp_path / "evaluation.json", content)
    page = write_report(tmp_path, tmp_path / "report.html").read_text(encoding="utf-8")
    facts = json.loads(re.search(r'id="viewer-facts">(.*?)</script>', page)[1])["cases"][0]
    assert [image["name"] for image in facts["images"]] == ["T2 (acquired)", "PD (source)", "good", "regression"]
    assert "<b>poor</b>: " in page


@pytest.mark.parametrize("text", [None, "{", "[]", '{"format": 7}'])
def test_a_folder_without_an_evaluation_is_refused_and_nothing_is_written(tmp_path, text):
    if text is not None:
        (tmp_path / "evaluation.json").write_text(text)
    with pytest.raises(DatasetError, match=r"evaluation\.json"):
        write_report(tmp_path, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
