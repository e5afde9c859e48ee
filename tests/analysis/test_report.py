"""The page: what is on it, that nothing gets out of its quotes, and how it behaves in a browser."""

from __future__ import annotations

import base64
import hashlib
import re
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import pytest

from spafit_bench.analysis.report import build_report
from spafit_bench.analysis.report.runs import scores
from spafit_bench.analysis.tables import build_tables
from spafit_bench.analysis.tables.settings import group_runs
from spafit_bench.results.record import RunRecord
from spafit_bench.results.store import Store
from tests.conftest import Cli
from tests.support.browser import CHROMIUM, Page, browser
from tests.support.finished_runs import finished, save, write_results
from tests.support.records import METHODS

HOSTILE = "</script><script>alert(1)</script>\"'><img src=http://evil.example/x onerror=alert(2)>"
VOID = {"meta", "link", "br", "input", "img"}


class Reader(HTMLParser):
    """Reads tags, attributes and headings, and insists that what is opened is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.policy = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag."""
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an empty element of a figure."""
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        """Close a tag, which has to be the last one opened."""
        assert self.open.pop() == tag

    def every(self, name: str) -> list[str]:
        """Values of an attribute."""
        return [
            value or "" for _, attrs in self.tags for key, value in attrs.items() if key == name
        ]


def odd_runs() -> list[RunRecord]:
    """Runs that ended in other ways, and one whose every text is hostile."""
    unfinished = {"metrics": {}, "score": None, "evaluations": ()}
    return [
        finished("rte", "spafit", 3, status="failed", reason=f"Error: {HOSTILE}", **unfinished),
        finished("rte", "full", 3, status="diverged", reason="loss is nan", **unfinished),
        finished("cola", "bitfit", 3, final=0.0, collapsed=True),
        finished("mrpc", HOSTILE, 0, model=HOSTILE, weights="e" * 64, official_split=False,
                 warnings=(HOSTILE,), config={"train.note": HOSTILE},
                 environment={"host": HOSTILE, "device_name": HOSTILE, "command": HOSTILE}),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Four methods, two tasks, three seeds, and runs that went wrong."""
    root = tmp_path_factory.mktemp("report") / "results"
    write_results(root, ("cola", "rte"))
    return save(root, *odd_runs())


@pytest.fixture(scope="module")
def page(store: Store) -> str:
    """The page of it."""
    return build_report(store, group_runs(store.records()))


@pytest.fixture(scope="module")
def reader(page: str) -> Reader:
    """The page, read."""
    found = Reader()
    found.feed(page)
    found.close()
    assert found.open == []
    return found


def test_every_table_figure_and_run_is_on_it(store: Store, page: str, reader: Reader) -> None:
    """Cells of all tables, drawn figures, one part per run, and reasons for what is not drawn."""
    for table in build_tables(store.records()):
        for row in table.rows:
            for cell in row.cells:
                assert cell.text in page
    assert page.count('<figure class="plot">') >= 6
    assert "Where the strata end: N1 and N2: needs" in page
    runs = len(store.records())
    assert sum(tag == "details" for tag, _ in reader.tags) == runs
    for run in store.records():
        assert page.count(f">{run.run_id}<" if "<" not in run.run_id else "mrpc") >= 1


def test_the_matrix_shows_how_every_run_ended(page: str) -> None:
    """A box per seed with a sign that is not colour alone; what most cells have is missed."""
    glance = page[page.index('<table class="glance">') : page.index("Scores")]
    states = re.findall(r'class="seed (\w+)"[^>]*>([^<]*)<', glance)
    assert ("failed", "3✗") in states
    assert ("diverged", "3∞") in states
    assert ("collapsed", "3†") in states
    assert states.count(("done", "0")) == 8
    assert not any(state == "missing" for state, _ in states)  # seed 3 is in few cells


def test_a_seed_that_most_cells_have_is_missed(tmp_path: Path) -> None:
    """Half of the cells make it expected."""
    records = [finished("rte", m, s) for m in METHODS for s in range(2)]
    store = save(tmp_path, *records[:-1])
    page = build_report(store, group_runs(store.records()))
    assert re.findall(r'<span class="seed missing" title="([^"]*)"', page) == ["seed 1: missing"]


def test_trials_have_their_curves() -> None:
    """They are judged on a held-out slice of train."""
    run = finished("mrpc", "lora", 0)
    by_hand = scores(run)
    assert len(by_hand) == 3
    held_out = [
        e.model_copy(update={"metrics": {"holdout": e.metrics["validation"]}})
        for e in run.evaluations
    ]
    trial = run.model_copy(update={"holdout": 0.1, "evaluations": tuple(held_out)})
    assert scores(trial) == by_hand


def test_nothing_gets_out_of_its_quotes(page: str, reader: Reader) -> None:
    """Hostile methods, models, reasons, settings and hosts are text, wherever they stand."""
    assert sum(tag == "script" for tag, _ in reader.tags) == 1
    assert not any(tag == "img" for tag, _ in reader.tags)
    assert not [key for _, attrs in reader.tags for key in attrs if key.startswith("on")]
    assert page.count("alert(1)") > 5
    assert "&lt;script&gt;alert(1)" in page


def test_nothing_is_fetched_and_only_its_script_runs(page: str, reader: Reader) -> None:
    """No address of another place; the policy allows the one script by its hash."""
    addresses = [
        a for n in ("src", "href", "xlink:href", "action", "data") for a in reader.every(n)
    ]
    assert addresses
    assert all(a.startswith(("#", "data:")) for a in addresses), addresses
    assert "@import" not in page
    assert re.findall(r"url\((?!#)", page) == []
    policy = next(a["content"] for t, a in reader.tags if a.get("http-equiv"))
    script = page[page.index("<script>") + 8 : page.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert f"script-src 'sha256-{digest}';" in policy
    assert "unsafe-eval" not in policy


def test_it_can_be_heard(page: str, reader: Reader) -> None:
    """Language, headings in order, captions and scopes, names for figures, unique identifiers."""
    assert '<html lang="en">' in page
    levels = [int(tag[1]) for tag, _ in reader.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
    assert page.count("<table") == page.count("<caption")
    assert all("scope" in attrs for tag, attrs in reader.tags if tag == "th")
    drawings = [attrs for tag, attrs in reader.tags if tag == "svg"]
    assert all(a.get("role") == "img" and a.get("aria-label") for a in drawings)
    identifiers = reader.every("id")
    assert len(identifiers) == len(set(identifiers))
    links = {address[1:] for address in reader.every("href") if address.startswith("#")}
    assert links <= set(identifiers)


@pytest.mark.parametrize("scheme", [0, 1])
def test_text_stands_out_from_its_ground(page: str, scheme: int) -> None:
    """Contrast of every text colour is 4.5 or more in light and dark, of lines in figures 1.9."""
    block = re.findall(r":root \{(.*?)\}", page, flags=re.S)[scheme]
    colors = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
    for ground in ("paper", "raised"):
        for text in ("ink", "muted", "link", "good", "bad", "warn"):
            assert contrast(colors[text], colors[ground]) >= 4.5, (text, ground)
    for index in range(7):
        assert contrast(colors[f"series-{index}"], colors["paper"]) >= 1.9


def contrast(one: str, other: str) -> float:
    """Contrast ratio (WCAG 2.2)."""
    low, high = sorted(map(_luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(color: str) -> float:
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_the_same_results_make_the_same_page(store: Store, page: str) -> None:
    """No date or random name in it."""
    again = build_report(store, group_runs(store.records()))
    assert again == page


def test_two_hundred_runs_stay_under_three_megabytes(page: str) -> None:
    """Figures and tables as they are, and each run's parts two hundred times."""
    start, end = page.index('<section id="runs">'), page.index('<section id="environments">')
    of_runs = len(page[start:end].encode()) / 28
    rest = len(page.encode()) - 28 * of_runs
    assert rest + 200 * of_runs < 3e6


def test_the_command_writes_it(store: Store, call: Cli, tmp_path: Path) -> None:
    """To the named file; a baseline and published scores are taken."""
    out = tmp_path / "deep" / "page.html"
    answer = call("report", "--results", store.root, "--out", out, "--baseline", "lora",
                  "--reference", "bert-large", "--json")  # fmt: skip
    assert answer.code == 0, answer.err
    assert answer.json == {"out": str(out), "bytes": out.stat().st_size}
    text = out.read_text()
    assert "Is it better than lora?" in text
    assert "Published" in text
    (tmp_path / "empty").mkdir()
    assert "make one with" in call("report", "--results", "empty").error


# In a browser


@pytest.fixture(scope="module")
def asked() -> Iterator[tuple[str, list[str]]]:
    """A proxy that answers nothing and remembers what it was asked."""
    requests: list[str] = []

    class Proxy(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Stay quiet."""

        def do_GET(self) -> None:
            """Refuse."""
            requests.append(self.path)
            self.send_error(404)

        do_CONNECT = do_POST = do_GET  # noqa: N815 (the library's names)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", requests
    server.shutdown()


@pytest.fixture(scope="module")
def shown(
    page: str, asked: tuple[str, list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Page]:
    """The page in a real browser."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page)
    with browser(f"--proxy-server={asked[0]}", "--proxy-bypass-list=<-loopback>") as found:
        found.look(1280, 900)
        found.open(path.as_uri())
        yield found


COLUMN = """
[...document.querySelectorAll("#run-table tbody tr:not([hidden])")].map(
  (row) => row.cells[%d].textContent)
"""
PRESS = 'document.querySelectorAll("#run-table thead button")[%d].click()'


def test_it_asks_for_nothing_and_complains_of_nothing(
    shown: Page, asked: tuple[str, list[str]]
) -> None:
    """Not one request leaves the page, by the browser's account and by a proxy's."""
    assert [url for url in shown.requests() if not url.startswith("data:")] == [
        shown.run("location.href")
    ]
    assert [url for url in asked[1] if "evil" in url or "google" not in url] == []
    assert shown.complaints() == []
    assert shown.run("document.title") == "spafit-bench results"


def test_the_policy_stops_what_an_escape_would_let_in(shown: Page) -> None:
    """Even if markup got in, it could neither run nor fetch."""
    shown.run("""
        const script = document.createElement("script");
        script.textContent = "window.broken = 1";
        document.body.append(script);
        const image = new Image();
        image.src = "http://evil.example/y";
        document.body.append(image);
        new Promise((done) => { image.onerror = done; setTimeout(done, 2000); })
    """)
    assert shown.run("window.broken") is None
    assert any("Content Security Policy" in said for said in shown.complaints())
    shown.run("script.remove(); image.remove()")


def test_a_press_on_a_heading_sorts(shown: Page) -> None:
    """Numbers as numbers, up and then down, with what is missing last both times."""
    score, params = 6, 7
    shown.run(PRESS % score)
    values = shown.run(COLUMN % score)
    numbers = [float(text) for text in values if text != "—"]
    assert numbers == sorted(numbers)
    assert values[-2:] == ["—", "—"]
    shown.run(PRESS % score)
    values = shown.run(COLUMN % score)
    numbers = [float(text) for text in values if text != "—"]
    assert numbers == sorted(numbers, reverse=True)
    assert values[-2:] == ["—", "—"]
    state = 'document.querySelectorAll("#run-table thead th")[%d].getAttribute("aria-sort")'
    assert shown.run(state % score) == "descending"
    shown.run(PRESS % params)
    counts = [int(text.replace(",", "")) for text in shown.run(COLUMN % params)]
    assert counts == sorted(counts)
    assert shown.run(state % score) is None


def test_the_table_of_runs_lists_each_run_once_with_its_rate(shown: Page) -> None:
    """The whole record of a run is there when its name in the table is pressed, not before."""
    assert len(set(shown.run(COLUMN % 0))) == len(shown.run(COLUMN % 0)) == 28
    assert set(shown.run(COLUMN % 4)) == {"1e-3"}
    visible = "[...document.querySelectorAll('#details > details')].filter(d => d.offsetHeight)"
    assert shown.run(f"{visible}.length") == 0


def test_sorting_keeps_the_majority_class_below(shown: Page) -> None:
    """Only rows of one part of a table change places."""
    names = """(() => {
        const table = [...document.querySelectorAll(".spafit-bench table")].find(
            (one) => one.textContent.includes("majority class"));
        table.tHead.rows[0].cells[1].querySelector("button").click();
        return [...table.querySelectorAll("tbody tr")].map((row) => row.cells[0].textContent);
    })()"""
    assert shown.run(names) == ["bitfit", "spafit", "lora", "full", "majority class"]


def test_words_and_choices_filter(shown: Page) -> None:
    """All words must be there; the count is said; an empty filter shows all again."""
    fill = """
        document.querySelector('[name=words]').value = '%s';
        const event = new Event('input', {bubbles: true});
        document.querySelector('[name=words]').dispatchEvent(event);
        document.querySelector('[name=count]').value
    """
    assert shown.run(f"{{ {fill % 'RTE lora'} }}") == "3 of 28 runs"
    assert set(shown.run(COLUMN % 2)) == {"lora"}
    assert shown.run(f"{{ {fill % ''} }}") == "28 of 28 runs"
    choose = """
        const box = document.querySelector('select[data-column="5"]');
        box.value = 'failed';
        box.dispatchEvent(new Event('input', {bubbles: true}));
        const count = document.querySelector('[name=count]').value;
        box.value = '';
        box.dispatchEvent(new Event('input', {bubbles: true}));
        count
    """
    assert shown.run(f"{{ {choose} }}") == "1 of 28 runs"


def test_a_link_opens_the_run(shown: Page) -> None:
    """The part that it leads to unfolds and comes into view."""
    shown.run("document.querySelector('#run-table tbody a').click()")
    opened = "document.querySelector('details[open] div')?.id"
    shown.wait(lambda: shown.run(opened) is not None)
    target = shown.run("document.querySelector('#run-table tbody a').hash")
    assert f"#{shown.run(opened)}" == target


def test_captions_wrap_and_wide_tables_show_that_they_scroll(shown: Page) -> None:
    """400 pixels wide: every caption is whole, and a shadow lies on the edge of what scrolls."""
    shown.look(400, 850, mobile=True)
    outside = """
        [...document.querySelectorAll('caption, figcaption, .spafit-bench li')]
            .map(one => one.getBoundingClientRect())
            .filter(box => box.width && (box.left < 0 || box.right > 400)).length
    """
    cues = """
        [...document.querySelectorAll('.scroll, figure.plot')]
            .filter(box => box.scrollWidth > box.clientWidth)
            .map(box => getComputedStyle(box).backgroundImage.split('linear-gradient').length - 1)
    """
    assert shown.run(outside) == 0
    found = shown.run(cues)
    assert len(found) > 3
    assert set(found) == {4}
    shown.look(1280, 900)


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone_and_follows_the_colours(shown: Page, dark: bool) -> None:
    """Nothing but its tables scrolls sideways; ground and text change with the scheme."""
    shown.look(390, 844, dark=dark, mobile=True)
    assert shown.run("document.documentElement.scrollWidth") <= 390
    ground = shown.run("getComputedStyle(document.body).backgroundColor")
    line = shown.run("getComputedStyle(document.querySelector('.plot svg text')).fill")
    shown.look(1280, 900)
    assert ground == ("rgb(20, 23, 26)" if dark else "rgb(255, 255, 255)")
    assert line == ("rgb(232, 234, 237)" if dark else "rgb(27, 27, 27)")


def test_it_prints(shown: Page) -> None:
    """To a PDF of some pages."""
    assert shown.pdf().startswith(b"%PDF")
