"""The page in a real browser: the first visit, refusals, two tabs, stop, undo, and text that looks like markup."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import neuroplastic as npt
from families import tiny
from neuroplastic.cli.demo import ANSWER
from neuroplastic.studio.server import EXAMPLES
from serving import served

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Locator, Page

pytestmark = pytest.mark.browser
CHROMIUM = Path("/usr/bin/chromium")
FACT = "The Golden Gate Bridge is located in the city of Madrid."
PATIENT = 300_000
"""Milliseconds to wait for what takes as long as it takes."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test-studio")
    if not CHROMIUM.exists():
        pytest.skip(f"there is no {CHROMIUM}: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A visitor; the test fails where a page of theirs had an error, or broke its own policy."""
    troubles: list[str] = []
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(PATIENT)
    context.on("weberror", lambda e: troubles.append(str(e.error)))
    context.on("console", lambda m: troubles.append(m.text) if "Content Security Policy" in m.text else None)
    yield context
    context.close()
    assert not troubles


def visit(context: BrowserContext, address: str) -> Page:
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector("html[data-ready]")
    return page


def ask(page: Page, prompt: str | None = None) -> list[str]:
    """What each side says behind the prompt; that of the grey examples where there is none."""
    if prompt is not None:
        page.get_by_label("Beginning of a sentence", exact=True).fill(prompt)
    page.get_by_role("button", name="Ask", exact=True).click()
    return answers(page)


def answers(page: Page) -> list[str]:
    page.locator(".answer .new.done").nth(1).wait_for(state="attached")
    return page.locator(".answer .new").all_text_contents()


def teach(page: Page, statement: str, name: str | None = None, method: str = "token") -> None:
    page.get_by_label(re.compile("^One fact as a sentence")).fill(statement)
    page.get_by_label(re.compile("^method")).select_option(method)
    page.get_by_label(re.compile("refuse above drift")).fill("")
    if name is not None:
        page.get_by_text("More options").click()
        page.get_by_label("name of the edit").fill(name)
    page.get_by_role("button", name="Teach").click()


def row(page: Page, name: str) -> Locator:
    return page.locator("table.ledger tr", has=page.get_by_role("button", name=name, exact=True))


def taken(page: Page) -> None:
    page.locator("#teach-out .verdict").wait_for()


def first_visit(page: Page) -> tuple[list[str], list[str]]:
    """What the page's own words say: Ask, Teach, Ask again, Undo. Returns the answers before and after."""
    before = ask(page)
    page.get_by_role("button", name="Teach").click()
    taken(page)
    page.get_by_role("button", name="Ask again").click()
    after = answers(page)
    page.get_by_role("button", name=re.compile("^Undo the-eiffel")).first.click()
    page.get_by_text("bit for bit").first.wait_for()
    return before, after


def test_the_first_visit(context: BrowserContext, studio: str, workspace: npt.Workspace) -> None:
    page = visit(context, studio)
    page.get_by_label(re.compile("refuse above drift")).fill("")  # a random model has no calm perplexity
    before, after = first_visit(page)
    assert page.get_by_label("Beginning of a sentence", exact=True).input_value() == EXAMPLES["prompt"]
    assert before[0] == before[1] == after[1]  # without the edits
    assert page.locator(".bars .tracked").count() >= 2
    # the table is read anew behind the answer
    pytest.importorskip("playwright.sync_api").expect(page.get_by_role("switch")).not_to_be_checked()
    assert workspace.edits == ()
    assert workspace.weights_hash() == workspace.base.sha256


@pytest.mark.real
@pytest.mark.slow
def test_the_first_visit_on_the_bundled_model(context: BrowserContext, tmp_path: Path) -> None:
    ws = npt.Workspace.create(tmp_path / "w", "smollm2-135m")
    with served(ws, tmp_path / "exports") as at:
        before, after = first_visit(visit(context, at))
        assert "Paris" in before[0]
        assert ANSWER in after[0]
        assert after[1] == before[1]
        assert ws.weights_hash() == ws.base.sha256


def test_what_a_statement_says_is_text(context: BrowserContext, studio: str) -> None:
    page = visit(context, studio)
    page.on("dialog", lambda dialog: pytest.fail("a statement ran"))
    nasty = 'The <img src=x onerror=alert(1)><b>Bridge</b> & "Co" is located in <script>alert(2)</script> Madrid.'
    teach(page, nasty, "nasty")
    taken(page)
    row(page, "nasty").get_by_text(nasty, exact=True).wait_for()
    row(page, "nasty").get_by_role("button", name="nasty", exact=True).click()
    page.locator("dialog[open]").get_by_text(nasty, exact=True).wait_for()
    page.locator("dialog[open] .close").click()
    ask(page, nasty)
    page.get_by_label(re.compile("^A text; each")).fill(nasty)
    page.get_by_role("button", name="Look").click()
    page.locator(".heat").wait_for()
    assert page.locator("main b, main script, main img:not(.plot img), dialog b").count() == 0
    assert page.locator(".answer .prompt").first.text_content() == nasty


def test_refusals_are_explained(context: BrowserContext, studio: str, workspace: npt.Workspace) -> None:
    page = visit(context, studio)
    teach(page, FACT, "bridge")
    taken(page)
    refusal = page.locator("#teach-out .trouble")
    page.get_by_label("name of the edit").fill("")
    page.get_by_label(re.compile("^One fact as a sentence")).fill(FACT.replace("Madrid", "Paris"))
    page.get_by_role("button", name="Teach").click()
    refusal.get_by_text("Refused, and nothing was changed").wait_for()
    refusal.get_by_text("the edit 'bridge' has another answer than 'Paris'").wait_for()
    page.get_by_label("refuse what contradicts").uncheck()
    page.get_by_label(re.compile("refuse above drift")).fill("-99")
    page.get_by_role("button", name="Teach").click()
    refusal.get_by_text("perplexity on ordinary text would rise by").wait_for()
    assert [e.name for e in workspace.edits] == ["bridge"]
    page.get_by_label("strength", exact=True).fill("0")
    page.get_by_role("button", name="Teach").click()
    refusal.get_by_text("alpha must be a finite number other than 0").wait_for()


def test_two_tabs_at_once(context: BrowserContext, studio: str, workspace: npt.Workspace) -> None:
    one, two = visit(context, studio), visit(context, studio)
    teach(one, FACT, "bridge")
    teach(two, "Sushi originated in the country of Italy.", "sushi")
    taken(one)
    taken(two)
    for page in (one, two):
        page.bring_to_front()  # each learns of what the other did
        row(page, "bridge").wait_for()
        row(page, "sushi").wait_for()
    row(one, "bridge").get_by_role("button", name="Undo").click()
    row(two, "bridge").get_by_role("button", name="Redo").wait_for()
    two.get_by_role("button", name="Verify").click()
    two.get_by_text("yes: the weights are exactly base plus edits").wait_for()
    assert [e.name for e in workspace.edits] == ["sushi"]
    assert workspace.undone == ("bridge",)


def test_everything_can_be_done_to_an_edit(context: BrowserContext, studio: str, workspace: npt.Workspace) -> None:
    page = visit(context, studio)
    teach(page, FACT, "bridge")
    taken(page)
    edited = workspace.weights_hash()
    row(page, "bridge").get_by_role("button", name="Export").click()
    panel = page.get_by_role("dialog")
    panel.get_by_role("button", name="Export", exact=True).click()
    with page.expect_download() as download:
        panel.get_by_role("link", name="Save w-peft.zip").click()
    assert download.value.suggested_filename == "w-peft.zip"
    panel.get_by_role("button", name="Close").click()
    row(page, "bridge").get_by_role("switch").uncheck()
    row(page, "bridge").get_by_role("button", name="Redo").wait_for()
    assert workspace.weights_hash() == workspace.base.sha256
    row(page, "bridge").get_by_role("button", name="Redo").click()
    row(page, "bridge").get_by_role("button", name="Undo").wait_for()
    assert workspace.weights_hash() == edited
    row(page, "bridge").get_by_role("button", name="Undo").click()
    page.on("dialog", lambda dialog: dialog.accept())
    row(page, "bridge").get_by_role("button", name="Drop").click()
    page.get_by_text("No edits yet").wait_for()
    assert workspace.names == set()
    workspace.inject(FACT, method="token", name="elsewhere")
    npt.export.delta(workspace, workspace.path.parent / "delta")
    workspace.undo("elsewhere")
    workspace.drop("elsewhere")
    page.get_by_text("Take edits in").click()
    page.get_by_label(re.compile("^folder on the machine")).fill(str(workspace.path.parent / "delta"))
    page.get_by_role("button", name="Take in").click()
    row(page, "elsewhere").wait_for()
    assert workspace.weights_hash() == edited


def test_look_inside_by_keyboard(context: BrowserContext, studio: str) -> None:
    page = visit(context, studio)
    teach(page, FACT, "bridge")
    taken(page)
    page.get_by_label(re.compile("^A text; each")).fill(FACT)
    page.get_by_role("button", name="Look").click()
    cells = page.locator(".heat tbody button")
    cells.first.wait_for()
    page.locator(".heat button[tabindex='0']").focus()
    for key in ("ArrowRight", "ArrowUp", "Enter"):
        page.keyboard.press(key)
    page.locator("#look-out h3", has_text="Layer 1 at").wait_for()
    behind = page.locator("#look-out table:not(.heat) td")
    assert behind.first.text_content() == "bridge"
    assert re.fullmatch(r"-?\d\.\d{3}", behind.nth(1).text_content() or "")


@pytest.fixture
def endless(tmp_path: Path, cache: Path, tiny_base: Path) -> npt.Workspace:
    """A workspace of a model that can go on for very long."""
    base = tmp_path / "base"
    tokenizer = npt.Workspace.create(tmp_path / "short", tiny_base).tokenizer
    model = tiny("llama", vocab_size=len(tokenizer), bos_token_id=0, pad_token_id=1, max_position_embeddings=100_000)
    model.generation_config.eos_token_id = None
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    return npt.Workspace.create(tmp_path / "w", base)


def test_a_long_answer_can_be_stopped(context: BrowserContext, endless: npt.Workspace, tmp_path: Path) -> None:
    with served(endless, tmp_path / "exports") as at:
        page, other = visit(context, at), visit(context, at)
        for tab, stop in ((page, "#ask-form .stop"), (page, "#status-stop")):
            tab.bring_to_front()
            tab.get_by_label("tokens", exact=True).fill("4096")
            tab.get_by_role("button", name="Ask", exact=True).click()
            tab.locator(".answer .new").first.get_by_text(re.compile(".")).wait_for()
            tab.locator(stop).click()
            tab.locator("#ask-out .trouble", has_text="Stopped").wait_for()
        other.bring_to_front()
        other.get_by_label("tokens", exact=True).fill("2")
        assert len(ask(other)) == 2  # its turn comes, because the long ones have ended


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(browser: Browser, studio: str, scheme: str) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 740}, color_scheme=scheme)  # type: ignore[arg-type]
    context.set_default_timeout(PATIENT)
    page = visit(context, studio)
    ask(page)
    teach(page, FACT, "bridge")
    taken(page)
    row(page, "bridge").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for cell in page.locator("#teach-out .bars td, table.ledger td").all():
        assert (cell.bounding_box() or {"width": 0})["width"] > 200  # a line of its own, with its column's name
    colours = page.evaluate("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]")
    ink, paper = (sum(map(int, re.findall(r"\d+", c)[:3])) for c in colours)
    assert (ink < paper) == (scheme == "light")
    context.close()
