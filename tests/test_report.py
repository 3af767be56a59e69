"""The page of results: whole after a finished run, honest after a failed one, the same in a real browser."""

from __future__ import annotations

import datetime
import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from test_evaluation import PREMISE, prediction, predictions

from pipeline.evaluation import provenance
from pipeline.evaluation.changes import marked
from pipeline.evaluation.compare import compare, write_comparison
from pipeline.evaluation.predictions import Step, write_predictions
from pipeline.evaluation.report import write_report
from pipeline.evaluation.schema import read_comparison
from pipeline.load import load_recipe, recipe_file
from pipeline.run import HOME, RunDir

LABELS = [1, 0, 1, 0, 1, 0, 1, 0]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run with results, hostile texts among them."""
    run = RunDir(tmp_path, "r")
    run.write_resolved(load_recipe(recipe_file(HOME, "smoke")), {"via": "local"})
    for step in (1, 2, 3):
        run.log_metrics("sft", {"step": step, "loss": 3.0 / step})
    hostile = "<script>alert('x')</script> & A directly causes B."
    models = {
        "base": predictions("base", [prediction(i, None, label) for i, label in enumerate(LABELS)]),
        "sft": predictions("sft", [prediction(i, "yes", label, hypothesis=hostile) for i, label in enumerate(LABELS)]),
        "grpo": predictions(
            "grpo",
            [
                prediction(i, "no" if i == 2 else ("yes" if label else "no"), label, hypothesis=hostile,
                           steps=[{"text": "A > B", "true": False, "reason": "it is <"}])
                for i, label in enumerate(LABELS)
            ],
        ),
    }  # fmt: skip
    run.results.mkdir(parents=True)
    for name, one in models.items():
        run.predictions(name).parent.mkdir(exist_ok=True)
        write_predictions(run.predictions(name), one)
    write_comparison(run.comparison, compare(models, ["sft", "grpo"], "corr2cause", 200, 1))
    return run


def test_the_page_holds_what_the_run_has(run: RunDir) -> None:
    page = write_report(run).read_text()
    for part in ("grpo", ">fixed<", ">broken<", "always yes", "polyline", 'class="false"', "global_batch_size"):
        assert part in page, part
    assert "<script>alert" not in page
    assert "McNemar" in page and "not distinguishable from zero" not in page.partition("grpo - sft")[0]
    assert not re.search(r"(?:src|href)\s*=\s*[\"']?[^#\"']|url\(|@import|https?://", page)


def test_published_numbers_stand_beside_their_own_test_only(run: RunDir) -> None:
    assert "RoBERTa-large-MNLI" not in write_report(run).read_text()
    comparison = read_comparison(run.comparison)
    assert comparison is not None
    for test, part in (("v1", "0.9474"), ("refactorization", "0.6787"), ("v2", "")):
        data = {**comparison.data, "published_test": test}
        write_comparison(run.comparison, comparison.model_copy(update={"data": data}))
        page = write_report(run).read_text()
        assert part in page
        assert ("RoBERTa-large-MNLI" in page) == bool(part)


def test_further_test_sets_have_their_own_tables(run: RunDir) -> None:
    comparison = read_comparison(run.comparison)
    assert comparison is not None
    v1 = comparison.model_copy(update={"data": {**comparison.data, "published_test": "v1", "rows": 2246}})
    write_comparison(run.comparison, comparison.model_copy(update={"sets": {"released v1": v1}}))
    again = read_comparison(run.comparison)
    assert again is not None and again.sets["released v1"] == v1
    page = write_report(run).read_text()
    top, _, further = page.partition("Test set released v1")
    assert "2246 rows" in further and "0.9474" in further and "0.9474" not in top


def test_cost_and_attempts_come_from_the_records(run: RunDir) -> None:
    for text in ("step 1\n", "step 9\nOutOfMemory: no room\n"):
        number = run.new_attempt("sft")
        run.attempt_log("sft", number).write_text(text, encoding="utf-8")
    run.write_submission("sft", job="7")
    submitted = datetime.datetime.fromisoformat(run.submission("sft")["submitted"])
    times = [(submitted + datetime.timedelta(minutes=each)).isoformat() for each in (6, 36)]
    run.write_state("sft", state="done", attempt=3, job="8", started=times[0], ended=times[1], reason="")
    run.log_metrics("sft", {"step": 4, "num_tokens": 1234567.0})
    run.log_metrics("sft", {"step": 4, "health": "answers are one-sided: nearly all No"})
    page = write_report(run).read_text()
    for part in ("OutOfMemory: no room", "1,234,567", "<td>0.500</td>", "<td>6.0</td>", "one-sided: nearly all No"):
        assert part in page, part


def test_settings_that_were_overridden_stand_beside_the_recipes(run: RunDir) -> None:
    title = "Settings other than those of the recipe"
    assert title not in write_report(run).read_text()
    run.write_resolved(load_recipe(recipe_file(HOME, "smoke"), ["sft.learning_rate=0.0123"]), {"via": "local"})
    told = write_report(run).read_text().partition(title)[2]
    assert re.search(r"<td>sft.learning_rate</td><td[^>]*>[0-9.e-]+</td><td[^>]*>0\.0123</td>", told)
    recipe = load_recipe(recipe_file(HOME, "smoke"), ["sft.learning_rate=0.0123"])
    run.write_resolved(recipe.model_copy(update={"name": "gone"}), {"via": "local"})
    assert title not in write_report(run).read_text()


def test_steps_are_marked_where_they_stand() -> None:
    steps = [Step(text=t, true=ok, reason="" if ok else "why") for t, ok in
             (("A - B", True), ("A > C", False), ("Check:", False), ("Therefore: No", True))]  # fmt: skip
    text = "Skeleton: A  -\nB; and A > C; Therefore: No."
    pieces = marked(text, steps)
    assert "".join(piece for piece, _, _ in pieces).startswith(text)
    assert [piece[:2] for piece in pieces if piece[1]] == [
        ("A  -\nB", "true"), ("A > C", "false"), ("Therefore: No", "true"), ("Check:", "false"),
    ]  # fmt: skip
    assert marked("", []) == []


def test_after_a_failed_run_it_says_what_is_missing(tmp_path: Path) -> None:
    run = RunDir(tmp_path, "r")
    run.write_resolved(load_recipe(recipe_file(HOME, "smoke")), {"via": "local"})
    run.write_state("sft", state="failed", reason="ValueError: <nonsense>")
    page = write_report(run).read_text()
    assert "no comparison yet" in page
    assert "ValueError: &lt;nonsense&gt;" in page


def test_a_torn_prediction_file_is_named(run: RunDir) -> None:
    run.predictions("sft").write_text("{")
    assert "is not JSON" in write_report(run).read_text()


def browse(page: Path, profile: Path, *words: str, width: int = 1200, script: str = "") -> tuple[str, str]:
    """(the page after its scripts, what the browser printed); `script` runs after the page's own."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("no Chromium here: bash scripts/install_system_packages.sh --with-browser")
    if script:
        text = page.read_text(encoding="utf-8").replace("</body>", f"<script>{script}</script></body>")
        page = profile.with_suffix(".html")
        page.write_text(text, encoding="utf-8")
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--disable-quic", f"--user-data-dir={profile}",
        f"--window-size={width},900", "--enable-logging=stderr", "--dump-dom", *words, page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.stdout, done.stderr


@pytest.mark.parametrize("width", [1200, 500])
def test_a_browser_renders_it(run: RunDir, tmp_path: Path, width: int) -> None:
    shown, told = browse(write_report(run), tmp_path / "profile", width=width)
    assert "F1 of each model with its 95 % interval" in shown
    assert "8 of 8 rows" in shown  # the page's own script has run
    assert "CONSOLE" not in told


DRIVE = """
const out = {};
const lines = () => [...document.querySelectorAll("#rows tr.one")];
const rows = () => lines().filter((row) => !row.hidden).map((row) => row.cells[0].textContent);
const pick = (name, value) => {
  document.querySelector(`#filters [name=${name}]`).value = value;
  document.querySelector("#filters").dispatchEvent(new Event("input"));
};
const press = (place) => document.querySelectorAll("#rows thead button")[place].click();
out.all = rows();
pick("tag", "broken:grpo:sft"); out.broken = rows(); out.count = document.querySelector("#shown").textContent;
pick("tag", "fixed:grpo:sft"); out.fixed = rows();
pick("label", "Yes"); out.both = rows();
pick("label", ""); pick("tag", "");
pick("text", "CAUSES b"); out.text = rows(); pick("text", "no such words"); out.none = rows();
pick("text", ""); pick("variables", "3"); out.variables = rows(); pick("variables", "");
press(0); press(0); out.down = rows(); out.aria = document.querySelectorAll("#rows th")[0].getAttribute("aria-sort");
press(4); out.byLabel = rows();
document.querySelector("#rows tr.one").click(); out.open = document.querySelector("#rows tr.open").textContent;
out.wrong = document.querySelectorAll("#rows tr.open .false").length;
document.querySelector("#rows tr.one").click(); out.closed = document.querySelectorAll("#rows tr.open").length;
out.loaded = performance.getEntriesByType("resource").length;
out.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
const told = Object.assign(document.createElement("output"), { id: "driven", textContent: JSON.stringify(out) });
document.body.replaceChildren(told);
"""


@pytest.mark.parametrize("width", [1200, 500])
def test_rows_are_sorted_filtered_and_opened(run: RunDir, tmp_path: Path, width: int) -> None:
    shown, told = browse(write_report(run), tmp_path / "profile", width=width, script=DRIVE)
    assert "CONSOLE" not in told
    found = re.search(r'<output id="driven">(.*?)</output>', shown, re.DOTALL)
    assert found, shown[-2000:]
    out = json.loads(html.unescape(found[1]))
    every = [str(row) for row in range(8)]
    assert out["all"] == out["text"] == out["variables"] == every
    assert out["broken"] == ["2"] and out["count"] == "1 of 8 rows"
    assert out["fixed"] == ["1", "3", "5", "7"] and out["both"] == [] and out["none"] == []
    assert out["down"] == every[::-1] and out["aria"] == "descending"
    assert out["byLabel"] == ["7", "5", "3", "1", "6", "4", "2", "0"]
    assert PREMISE in out["open"] and "grpo: No" in out["open"] and "it is <" in out["open"] and out["wrong"] == 1
    assert out["closed"] == 0 and out["loaded"] == 0
    assert out["wide"] <= 0  # no sideways scrolling of the whole page


@pytest.mark.parametrize(("scheme", "colour"), [("1", "rgb(255, 255, 255)"), ("0", "rgb(18, 24, 30)")])
def test_the_page_follows_light_and_dark(run: RunDir, tmp_path: Path, scheme: str, colour: str) -> None:
    script = "document.body.textContent = getComputedStyle(document.body).backgroundColor"
    words = f"--blink-settings=preferredColorScheme={scheme}"
    shown, _ = browse(write_report(run), tmp_path / "profile", words, script=script)
    assert colour in shown


def test_on_a_phone_only_tables_scroll_sideways(run: RunDir, tmp_path: Path) -> None:
    """The browser's own window cannot be so narrow; a frame of 390 px can."""
    wrapper = tmp_path / "phone.html"
    inner = html.escape(write_report(run).read_text(encoding="utf-8"))
    wrapper.write_text(
        f'<body><iframe srcdoc="{inner}" style="width:390px;height:844px;border:0"></iframe><output></output><script>'
        "onload = () => { const root = document.querySelector('iframe').contentDocument.documentElement;"
        "document.querySelector('output').textContent = `${root.clientWidth} wide, ${root.scrollWidth} needed`; };"
        "</script></body>",
        encoding="utf-8",
    )
    shown, told = browse(wrapper, tmp_path / "profile")
    found = re.search(r"<output>(\d+) wide, (\d+) needed</output>", shown)
    assert found, shown[-500:]
    assert 370 <= int(found[1]) <= 390 and int(found[2]) <= int(found[1])
    assert "CONSOLE" not in told


def test_attempts_are_told_as_the_timeline_has_them(tmp_path: Path) -> None:
    run = RunDir(tmp_path, "r")
    recipe = load_recipe(recipe_file(HOME, "smoke"))
    run.write_resolved(recipe, {"via": "local"})
    for job, end in (("11", "interrupted"), ("12", ""), ("13", "done")):
        number = run.new_attempt("sft")
        run.attempt_log("sft", number).write_text(f"last words of {number}\n", encoding="utf-8")
        run.write_state(
            "sft", state="running", attempt=number, job=job, host="n1", started=f"2026-01-0{number}T00:00:00+00:00"
        )
        if end:
            reason = "TIMEOUT" if end != "done" else ""
            run.write_state("sft", state=end, ended="2026-01-09T00:00:00+00:00", reason=reason, peak_memory_gb=1.25)
    found = {each.number: each for each in provenance.attempts(run, recipe) if each.stage == "sft"}
    assert [(each.state, each.cause, each.job) for each in found.values()] == [
        ("interrupted", "TIMEOUT", "11"), ("did not finish", "last words of 2", "12"), ("done", "", "13"),
    ]  # fmt: skip
    assert found[1].started and found[1].ended and not found[2].ended
    others = [each for each in provenance.attempts(run, recipe) if each.stage != "sft"]
    assert {(each.number, each.state) for each in others} == {(0, "not started")}
    page = write_report(run).read_text(encoding="utf-8")
    assert "1.25 GB" in page and "TIMEOUT" in page and "last words of 2" in page
