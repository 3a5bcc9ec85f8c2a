"""The page in a real browser: it opens from a file, runs its script, and asks for nothing."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import fake_run
import pytest
from fake_run import FOUR

from encbench.reports.build import build_report

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no chromium, chromium-browser or google-chrome is installed"
)
EVIL = '<script>document.documentElement.dataset.evil="yes"</script>'


def open_page(page: Path, profile: Path) -> tuple[str, str]:
    """The page's elements once its script has run, and what the console said."""
    assert BROWSER is not None
    done = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={profile}", "--enable-logging=stderr", "--v=0", "--dump-dom",
            page.resolve().as_uri(),
        ],
        capture_output=True, text=True, timeout=120, env={**os.environ, "HOME": str(profile)},
    )  # fmt: skip
    console = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    return done.stdout, console


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    folder = fake_run.build(tmp_path_factory.mktemp("browser") / "run", FOUR, caption=EVIL)
    return build_report(folder)


def test_the_page_opens_from_a_file_without_a_script_error(page, tmp_path):
    dom, console = open_page(page, tmp_path)
    assert 'data-js="ready"' in dom
    assert console == ""
    assert "data-evil" not in dom.split(">", 2)[1]
    assert "Use CLIP ViT-L/14" in dom
    assert dom.count("<button") > 10  # headers that sort
    assert 'type="search"' in dom


def test_script_errors_and_outside_requests_would_be_seen(page, tmp_path):
    """The test above can fail: a broken script and a forbidden request both show."""
    source = page.read_text("utf-8")
    broken = tmp_path / "broken.html"
    broken.write_text(
        re.sub(r"<meta http-equiv=.*?>", "", source).replace(
            '"use strict";', '"use strict"; missing();'
        ),
        "utf-8",
    )
    dom, console = open_page(broken, tmp_path / "one")
    assert 'data-js="ready"' not in dom
    assert "missing is not defined" in console
    asking = tmp_path / "asking.html"
    asking.write_text(source.replace("<main>", '<main><img src="https://example.org/x.png">'))
    _, console = open_page(asking, tmp_path / "two")
    assert "Content Security Policy" in console


def test_tables_sort_and_the_gallery_filters(page, tmp_path):
    """A script added to a copy of the page clicks and types, and writes down what it sees."""
    probe = """
    <script>
    window.addEventListener("load", function () {
      var out = [];
      function column(index) {
        var rows = document.querySelector("#ranking-table").tBodies[0].rows;
        return Array.prototype.map.call(rows, function (r) { return r.cells[index].textContent; });
      }
      var heads = document.querySelectorAll("#ranking-table th");
      var before = column(2);
      heads[3].querySelector("button").click();
      out.push(["down", JSON.stringify(before) === JSON.stringify(column(2))]);
      out.push(["marked", heads[3].getAttribute("aria-sort") === "descending"]);
      heads[3].querySelector("button").click();
      out.push(["up", JSON.stringify(before.slice().reverse()) === JSON.stringify(column(2))]);
      heads[0].querySelector("button").click();
      out.push(["rank", column(0).slice(0, 5).join() === "1,2,3,4,control"]);
      out.push(["one mark", document.querySelectorAll("#ranking-table [aria-sort]").length === 1]);
      var input = document.querySelector("#gallery input");
      var all = document.querySelectorAll("#gallery .case").length;
      input.value = "CLOCK tower";
      input.dispatchEvent(new Event("input"));
      var left = document.querySelectorAll("#gallery .case:not([hidden])");
      out.push(["fewer", left.length > 0 && left.length < all]);
      out.push(["right", Array.prototype.every.call(left, function (c) {
        return c.textContent.indexOf("clock tower") >= 0; })]);
      input.value = "";
      input.dispatchEvent(new Event("input"));
      out.push(["all", document.querySelectorAll("#gallery .case:not([hidden])").length === all]);
      document.documentElement.dataset.seen = out.map(String).join(";");
    });
    </script></body>"""
    copy = tmp_path / "copy.html"
    source = re.sub(r"<meta http-equiv=.*?>", "", page.read_text("utf-8"))
    copy.write_text(source.replace("</body>", probe), "utf-8")
    dom, console = open_page(copy, tmp_path / "profile")
    assert console == ""
    found = re.search(r'data-seen="([^"]*)"', dom)
    assert found is not None
    seen = dict(part.split(",") for part in found[1].split(";"))
    assert len(seen) == 8
    assert set(seen.values()) == {"true"}, seen


def test_figures_say_what_a_mark_is_by_the_keyboard_and_by_the_pointer(page, tmp_path):
    """Arrow keys go through the marks; the pointer shows the one beneath it; Escape hides it."""
    probe = """
    <script>
    window.addEventListener("load", function () {
      var out = [];
      var figure = document.querySelector("#figure-ranking svg");
      var tip = document.querySelector(".tip");
      function press(key) { figure.dispatchEvent(new KeyboardEvent("keydown", { key: key })); }
      out.push(["hidden", tip.hidden && figure.tabIndex === 0]);
      press("End");
      var last = tip.textContent;
      press("ArrowRight");
      out.push(["round", !tip.hidden && tip.textContent !== last]);
      press("ArrowLeft");
      out.push(["back", tip.textContent === last]);
      press("Escape");
      out.push(["escape", tip.hidden && !figure.classList.contains("picked")]);
      var mark = Array.prototype.filter.call(figure.querySelectorAll(".mark"), function (m) {
        return m.dataset.name === "MiniLM-L6"; }).pop();
      mark.scrollIntoView({ behavior: "instant", block: "center" });
      var box = mark.getBoundingClientRect();
      figure.dispatchEvent(new PointerEvent("pointermove", {
        clientX: box.left + box.width / 2, clientY: box.top + box.height / 2 + 3 }));
      out.push(["pointer", tip.textContent.indexOf("MiniLM-L6") === 0]);
      out.push(["same", figure.querySelectorAll(".mark.same").length >= 2]);
      out.push(["titles", document.querySelectorAll(".plot svg title").length === 0]);
      document.documentElement.dataset.seen = out.map(String).join(";");
    });
    </script></body>"""
    copy = tmp_path / "copy.html"
    source = re.sub(r"<meta http-equiv=.*?>", "", page.read_text("utf-8"))
    copy.write_text(source.replace("</body>", probe), "utf-8")
    dom, console = open_page(copy, tmp_path / "profile")
    assert console == ""
    found = re.search(r'data-seen="([^"]*)"', dom)
    assert found is not None
    seen = dict(part.split(",") for part in found[1].split(";"))
    assert len(seen) == 7
    assert set(seen.values()) == {"true"}, seen
