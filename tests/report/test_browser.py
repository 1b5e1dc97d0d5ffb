"""The page in a browser: headless Chromium opens it from the disk, without network, and uses it as people do."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from shareatt_export.formats.shards import read_model
from shareatt_export.model.facts import read_facts
from shareatt_export.report.measurements import read_measurements
from shareatt_export.report.page import page

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.by import By  # noqa: E402  (selenium may be missing)
from selenium.webdriver.common.keys import Keys  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="needs Debian's packages chromium and chromium-driver"
)
ROOT = Path(__file__).parents[2]
ARGUMENTS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
DARK, LIGHT = "rgb(21, 24, 28)", "rgb(255, 255, 255)"
PHONE, DESKTOP = 360, 1280
CHECKS = (ROOT / "tests" / "support" / "page_checks.js").read_text()


@pytest.fixture(scope="module")
def driver() -> Iterator["webdriver.Chrome"]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ARGUMENTS:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def opened(driver, reports, tmp_path):
    """The page of all reports, on a desktop and in light colours."""
    path = tmp_path / "report.html"
    path.write_text(page([each for file in reports.values() for each in read_measurements(file)]), encoding="utf-8")
    screen(driver, DESKTOP, dark=False)
    driver.get_log("performance")
    driver.get(path.as_uri())
    return driver


def screen(driver, width, dark):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width == PHONE}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


def check(opened, call):
    return opened.execute_script(f"{CHECKS}\nreturn {call};")


def one(opened, css):
    return opened.find_element(By.CSS_SELECTOR, css)


def front_with(opened, name):
    """The front in whose table a map has this name."""
    fronts = opened.find_elements(By.CSS_SELECTOR, ".front")
    return next(front for front in fronts if f". {name}" in front.find_element(By.TAG_NAME, "table").text)


def test_it_asks_nobody_for_anything_and_has_no_errors(opened):
    for button in opened.find_elements(By.CSS_SELECTOR, "#theme, .copy"):
        if button.is_displayed():
            button.click()
    log = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    urls = [entry["params"]["request"]["url"] for entry in log if entry["method"] == "Network.requestWillBeSent"]
    assert urls == [opened.current_url]
    assert opened.get_log("browser") == []


def test_the_policy_stops_what_is_not_inlined(opened, tmp_path):
    """A script, a style and a picture that get into the page are not used."""
    path = tmp_path / "changed.html"
    evil = "<script>document.title = 'evil'</script><style>main{display:none}</style><img src='x.png'>"
    path.write_text(Path(opened.current_url.removeprefix("file://")).read_text().replace("<main>", f"{evil}<main>"))
    opened.get(path.as_uri())
    assert opened.title.startswith("Shared Attention") and one(opened, "main").is_displayed()
    assert len([entry for entry in opened.get_log("browser") if "Content Security Policy" in entry["message"]]) == 3


def test_the_slider_shows_the_best_map_and_its_command(opened, data):
    front = front_with(opened, "KV groups dropped")
    slider, best = front.find_element(By.TAG_NAME, "input"), front.find_element(By.CSS_SELECTOR, ".best")
    seen = []
    slider.send_keys(Keys.HOME)
    for _ in range(int(slider.get_attribute("max")) + 1):
        budget = int(re.sub(r"\D", "", slider.get_attribute("aria-valuetext")))
        seen.append(budget)
        points = [*data["layers"]["path"][1:], *data["layers"]["baselines"], data["layers"]["dropped"]]
        points += [data["groups"]["found"], *data["groups"]["simple"]]
        fits = [point for point in points if point["kv_bytes_per_token"] <= budget and point["type_k"] == "f16"]
        least = min(fits, key=lambda point: point["kl"]["mean"])
        same = [point for point in fits if point["kl"]["mean"] == least["kl"]["mean"]]
        names = [f", {point['name']}: {point['kv_bytes_per_token']:,} bytes" for point in same]
        assert any(name in best.text for name in names), best.text
        assert front.find_element(By.TAG_NAME, "code").text in {point["command"] for point in same}
        chosen = front.find_elements(By.CSS_SELECTOR, ".mark.chosen")
        assert len(chosen) == 1 and f"is {chosen[0].find_element(By.TAG_NAME, 'text').text}, " in best.text
        slider.send_keys(Keys.ARROW_RIGHT)
    assert seen == sorted(set(seen)) and len(seen) > 3


def test_the_copied_command_runs(opened, data, tmp_path):
    """It reads the map from the file of the search, or from MAP.json, which the page offers to save."""
    front = front_with(opened, "KV groups dropped")
    code, slider = front.find_element(By.TAG_NAME, "code"), front.find_element(By.TAG_NAME, "input")
    slider.send_keys(Keys.HOME)
    while "--map" not in code.text:
        slider.send_keys(Keys.ARROW_RIGHT)
    front.find_element(By.CSS_SELECTOR, ".copy").click()
    opened.execute_script("document.body.append(Object.assign(document.createElement('textarea'), {id: 'paste'}))")
    one(opened, "#paste").send_keys(Keys.CONTROL, "v")
    copied = one(opened, "#paste").get_attribute("value")
    assert copied == code.text
    link = front.find_element(By.CSS_SELECTOR, ".more a")
    assert link.get_attribute("download") == "MAP.json"
    kind, _, saved = unquote(link.get_attribute("href")).partition(",")
    assert kind == "data:application/json"
    (tmp_path / "MAP.json").write_text(saved)

    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "shareatt_export", *shlex.split(copied)[1:]]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    exported = read_facts(read_model(tmp_path / "OUT.gguf"))
    n_bytes = exported.kv_bytes_per_token(exported.attention)
    assert f"{n_bytes:,} bytes per token" in front.find_element(By.CSS_SELECTOR, ".best").text


def test_every_group_is_reached_by_keyboard(opened):
    front_with(opened, "KV groups dropped")
    figure = next(each for each in opened.find_elements(By.CSS_SELECTOR, "figure.map") if each.is_displayed())
    rows = [row.find_elements(By.TAG_NAME, "button") for row in figure.find_elements(By.CSS_SELECTOR, ".layer")]
    about, select = one(opened, ".about"), one(opened, ".choice select")
    opened.execute_script("arguments[0].focus()", select)
    select.send_keys(Keys.TAB)
    assert opened.switch_to.active_element == rows[0][0]  # one stop of Tab for all cells
    reached = []
    for i, row in enumerate(rows):
        for _ in row:
            reached.append(opened.switch_to.active_element)
            assert about.text == reached[-1].get_attribute("title") and f"Layer {i}, group" in about.text
            reached[-1].send_keys(Keys.ARROW_RIGHT)
        for _ in row:
            opened.switch_to.active_element.send_keys(Keys.ARROW_LEFT)
        opened.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    assert reached == [cell for row in rows for cell in row] and len(reached) == 36


def test_a_map_is_chosen_by_its_name(opened):
    options = one(opened, ".choice select").find_elements(By.TAG_NAME, "option")
    for option in options:
        option.click()
        shown = [each for each in opened.find_elements(By.CSS_SELECTOR, "figure.map") if each.is_displayed()]
        assert [each.get_attribute("id") for each in shown] == [option.get_attribute("value")]
        assert option.text in shown[0].find_element(By.TAG_NAME, "figcaption").text


def test_a_heatmap_says_its_values_and_shows_the_heads_of_a_pair(opened, data):
    error = opened.find_elements(By.CSS_SELECTOR, "[data-heatmap]")[3]
    opened.execute_script("arguments[0].focus()", error)
    for _ in range(3):
        error.send_keys(Keys.ARROW_DOWN)
    for _ in range(2):
        error.send_keys(Keys.ARROW_RIGHT)
    pair = next(each for each in data["analyze"]["pairs"] if (each["source"], each["follower"]) == (2, 3))
    says = opened.execute_script("return arguments[0].parentElement.querySelector('output').textContent", error)
    assert says == f"follower 3, source 2: {float(format(pair['error'], '.4f'))}"
    error.send_keys(Keys.ENTER)
    shown = [cell.text for cell in opened.find_elements(By.CSS_SELECTOR, ".heads td")]
    assert [float(text) for text in shown] == pytest.approx(np.ravel(pair["head_similarity"]), abs=0.0051)


def test_light_and_dark(opened):
    def paper():
        return one(opened, "body").value_of_css_property("background-color").replace("rgba", "rgb").replace(", 1)", ")")

    assert paper() == LIGHT
    for expected in (DARK, LIGHT):
        one(opened, "#theme").click()
        assert paper() == expected
    opened.refresh()
    screen(opened, DESKTOP, dark=True)
    assert paper() == DARK
    one(opened, "#theme").click()
    assert paper() == LIGHT


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_nothing_is_cut_off_and_all_text_can_be_read(opened, width, dark):
    screen(opened, width, dark)
    assert opened.execute_script("return document.body.scrollWidth <= document.documentElement.clientWidth")
    assert check(opened, "outside()") == check(opened, "faint()") == check(opened, "overlapping()") == []


def test_the_numbers_of_heatmaps_can_be_read(opened):
    contrasts = check(opened, "onColours()")
    assert len(contrasts) == 8 and min(contrasts) >= 4.5


def test_what_cannot_be_read_is_seen(opened):
    assert len(check(opened, "faint(22)")) > 100
    opened.execute_script("document.querySelector('h1').style.whiteSpace = 'nowrap'")
    screen(opened, 200, dark=False)
    assert check(opened, "outside()")
    opened.execute_script("for (const text of document.querySelectorAll('.chart text')) text.setAttribute('x', 50)")
    assert check(opened, "overlapping()")


def test_it_can_be_printed(opened):
    printed = opened.execute_cdp_cmd("Page.printToPDF", {"printBackground": True, "preferCSSPageSize": False})
    assert printed["data"].startswith("JVBERi")  # %PDF-
