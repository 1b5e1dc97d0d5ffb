"""The page as text: what it shows of real reports, and that nothing in a file becomes a part of the page."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from shareatt_export.errors import BadInput
from shareatt_export.report.measurements import measurement
from shareatt_export.report.page import page

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\u2028'\"&amp;"
SECTIONS = {
    "analyze": {"How alike layers attend"},
    "layers": {"What each layer does", "Quality for memory"},
    "groups": {"What each layer does", "Quality for memory"},
    "eval": {"What each layer does", "Quality for memory", "Quality"},
    "bench": {"What each layer does", "Speed and memory"},
}


class Elements(HTMLParser):
    """The start tags of a page, the text in each kind of element, and the ids."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "input"):
            self._open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        assert self._open.pop() == tag  # each element is closed where it was opened

    def handle_data(self, data):
        for tag in set(self._open):
            self.texts[tag][-1] += data


def everything(reports):
    return page([measurement(report, f"{kind}.json") for kind, report in reports.items()])


def with_evil(value):
    """Put HTML at the end of all texts, and of all names that a file chooses."""
    if isinstance(value, dict):
        return {key: with_evil(each) for key, each in value.items()}
    if isinstance(value, list):
        return [with_evil(each) for each in value]
    return value + EVIL if isinstance(value, str) else value


@pytest.mark.parametrize("kind", SECTIONS)
def test_the_sections_of_each_report(measured, kind):
    found = Elements(page([measured[kind]]))
    assert set(found.texts.get("h3", [])) == SECTIONS[kind]
    assert found.texts["h2"][-1] == "How it was measured"


def test_all_reports_of_a_model_are_one_page(data):
    found = Elements(everything(data))
    assert found.texts["h3"] == [
        "What each layer does",
        "Quality for memory",
        "How alike layers attend",
        "Quality",
        "Speed and memory",
    ]
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    options = found.texts["option"]
    assert any(option.startswith("found") for option in options) and any("sa.gguf" in option for option in options)
    assert len(options) == len(set(options)) == sum(tag == "option" for tag, _ in found.tags)


def test_reports_of_two_models_are_two_sections(data):
    other = data["layers"] | {"model": "other/model.gguf"}
    del other["provenance"]
    found = Elements(page([measurement(data["layers"], "a.json"), measurement(other, "b.json")]))
    assert found.texts["h1"] == ["Shared Attention: dense.gguf, model.gguf"]
    assert found.texts["h2"] == ["dense.gguf", "model.gguf", "How it was measured"]


def test_the_numbers_are_those_of_the_file(data):
    text = " ".join(everything(data).split())
    for point in (data["groups"]["found"], data["layers"]["path"][-1], data["eval"]["scores"][1]):
        assert f"<span>{point['kv_bytes_per_token']:,}</span>" in text
        assert f"<span>{point['perplexity']:.2f}</span>" in text
    speed = next(row for row in data["bench"]["rows"] if row["what"] == "decode" and row["depth"] == 200)
    for value in (speed["ratios"]["SA"]["median"], speed["predicted"]):
        assert f"{value:#.3g}" in text
    for fact in ("tool", "llama_cpp", "patch", "date"):
        assert data["bench"]["provenance"][fact] in text
    assert data["eval"]["text"]["texts"][1]["sha256"] in text
    assert data["eval"]["provenance"]["models"][1]["tensors_blake3"] in text


def test_html_in_a_report_is_text(data):
    plain, evil = Elements(everything(data)), Elements(everything(with_evil(data)))
    assert [tag for tag, _ in evil.tags if tag in ("script", "img")] == ["script", "script"]
    attributes = [{key for _, found in page.tags for key in found} for page in (evil, plain)]
    assert attributes[0] <= attributes[1]
    assert any("dense.gguf" + EVIL in text for text in evil.texts["td"])


def test_the_embedded_data_cannot_end_its_element(data):
    text = everything(with_evil(data))
    embedded = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1]
    assert not set(embedded) & set("<>&\u2028\u2029")
    assert EVIL in json.dumps(json.loads(embedded), ensure_ascii=False).replace('\\"', '"')


def test_the_policy_allows_the_page_itself_and_nothing_else(data):
    text = everything(data)
    policy = next(attributes["content"] for tag, attributes in Elements(text).tags if "http-equiv" in attributes)
    rules = dict(rule.split(maxsplit=1) for rule in policy.split("; "))
    assert rules.keys() == {"default-src", "style-src", "script-src", "base-uri", "form-action"}
    assert {rules[key] for key in ("default-src", "base-uri", "form-action")} == {"'none'"}
    for key, start in (("style-src", "<style>"), ("script-src", "<script>")):
        content = text.split(start)[1].split("</")[0]
        assert rules[key] == f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
    found = Elements(text)
    loading = {"src", "srcset", "action", "data", "poster", "style", *(f"on{event}" for event in ("click", "load"))}
    assert not loading & {key for _, attributes in found.tags for key in attributes}
    assert {attributes.get("href") for tag, attributes in found.tags if tag in ("a", "link")} <= {None}


def without_each(report):
    """Yield a report without one of its keys, for each key, also of the objects in it."""
    for key, value in report.items():
        rest = {other: each for other, each in report.items() if other != key}
        yield key, rest
        inner = value if isinstance(value, dict) else value[0] if isinstance(value, list) and value else None
        if isinstance(inner, dict):
            for name, changed in without_each(inner):
                yield f"{key}.{name}", rest | {key: changed if isinstance(value, dict) else [changed, *value[1:]]}


@pytest.mark.parametrize("kind", SECTIONS)
def test_a_report_without_any_one_key(data, kind):
    """The page leaves out what it does not know; what it cannot do without is an error of one line."""
    for key, report in without_each(data[kind]):
        try:
            Elements(page([measurement(report, "x.json")]))
        except BadInput as error:
            assert re.search(
                r"^x\.json: (no command|(.*\.)?model: is missing|.*: has \d+ layers|.*: is not)", str(error)
            ), key


def test_a_page_is_small(data):
    assert len(everything(data)) < 400_000
