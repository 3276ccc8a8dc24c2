"""Explorers in a browser, as a reader has them: each gesture, each way into a page, the numbers those of the arrays."""

import base64
import html
import itertools
import json
import re
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.image import imread

from companion.plotting import PositionTable, explore_attention, explore_positions, plot_attention
from companion.plotting.explorers import _draw_tables

TOKENS = ["the", "film", "was", "not", "bad"]
KEYS = ["der", "Film", "war"]
WEIGHTS = torch.randn(3, 2, 5, 5, generator=torch.Generator().manual_seed(0)).softmax(dim=-1)
WEIGHTS[1, 0, 3] = 0.0  # attends nowhere
HOSTILE = [
    "</script><script>window.fired = 1</script>",
    '"><img src=x onerror="window.fired = 1">',
    "&amp;&lt;",
    "'\\u2028\u2028\u2029\\",
    "",
    "  two  spaces ",
    "a\nb\r\nc\t\x00",
    "שלום abc \u202e",
    "$x^2$ \\(y\\)",
    "<!--",
    "x" * 200,
]
SIGNED = PositionTable(torch.tensor([[0.0, 1.0, -2.0, 0.12345678], [3e-7, 0.5, 4.0, 1.0], [1.0, 2.0, 3.0, -4.0]]))
ANGLES = PositionTable(torch.tensor([[0.0, 0.0], [1.0, 0.1], [2.0, 0.2], [-3.0, 0.3]]), column="pair", hand="angle")
CLOCK = PositionTable(torch.tensor([[0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.6, 0.8]]), hand="clock")
BIAS = PositionTable(torch.zeros(2, 1), row="distance", column="head")
TABLES = {"signed": SIGNED, "angles": ANGLES, "clock": CLOCK, "bias": BIAS}


class Fragment(HTMLParser):
    """What a fragment holds: its elements' attributes, and its text outside of style and script."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self.open = [], "", []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        self.open.pop()

    def handle_data(self, data):
        if not {"style", "script"} & {*self.open}:
            self.text += data


def content(explorer):
    """Return what the script is given."""
    (held,) = [attributes for _, attributes in Fragment(explorer.html).elements if "data-content" in attributes]
    return json.loads(held["data-content"])


def written(value):
    """Write a weight as the explorer does."""
    stored = float(value)
    return "0" if stored == 0 else "<0.01" if stored < 0.005 else f"{stored:.2f}"


def test_the_weights_in_the_page_are_those_of_the_tensor_to_four_decimals():
    held = content(explore_attention(WEIGHTS, TOKENS))
    stored = np.frombuffer(base64.b64decode(held["weights"]), "<u2").reshape(WEIGHTS.shape) / 10_000
    np.testing.assert_allclose(stored, WEIGHTS.numpy(), rtol=0, atol=0.5e-4 + 1e-9)
    assert (held["queries"], held["keys"]) == (TOKENS, TOKENS)


def test_a_weight_is_nothing_in_the_page_only_where_it_is_nothing_in_the_tensor():
    weights = torch.tensor([[[[0.0, 1e-9, 1 - 1e-9]]]], dtype=torch.float64)
    held = content(explore_attention(weights, ["a"], KEYS))
    assert np.frombuffer(base64.b64decode(held["weights"]), "<u2").tolist() == [0, 1, 10_000]


def test_the_entries_in_the_page_are_those_of_the_tables_to_four_digits():
    for held, (name, table) in zip(content(explore_positions(TABLES))["tables"], TABLES.items(), strict=True):
        assert (held["name"], held["row"], held["column"], held["hand"]) == (name, *table[1:])
        np.testing.assert_allclose(held["values"], table.values.numpy(), rtol=0.5e-3, atol=0)
    assert content(explore_positions({"signed": SIGNED}))["tables"][0]["values"][0][3] == 0.1235


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_arrays_of_any_precision_and_with_gradients_can_be_explored(dtype):
    weights = torch.full((1, 1, 2, 2), 0.5, dtype=dtype, requires_grad=True)
    assert explore_attention(weights, ["a", "b"]).html == explore_attention(weights.float(), ["a", "b"]).html
    explore_positions({"learned": PositionTable(weights[0, 0])})


@pytest.mark.parametrize("explorer", [explore_attention(WEIGHTS, TOKENS), explore_positions(TABLES)])
def test_an_explorer_is_a_page_a_picture_and_a_line_of_text(explorer):
    bundle, metadata = explorer._repr_mimebundle_()
    assert set(bundle) == {"text/html", "image/png", "text/plain"}
    assert base64.b64decode(bundle["image/png"]) == explorer.png
    assert bundle["text/plain"] == repr(explorer) == f"Explorer({explorer.title!r})"
    pictures = [attributes for tag, attributes in Fragment(bundle["text/html"]).elements if tag == "img"]
    assert [picture["src"].split(",")[1] for picture in pictures] == [bundle["image/png"]]
    assert [picture["alt"] for picture in pictures] == [explorer.description]
    assert Fragment(bundle["text/html"]).text.strip() == ""  # nothing to read where style and script are dropped
    image = imread(BytesIO(explorer.png))
    assert image[0, 0].tolist() == [1, 1, 1, 1]
    width, height = (metadata["image/png"][side] for side in ("width", "height"))
    assert (image.shape[0] // 2, image.shape[1] // 2) == (height, width)
    assert [picture["width"] for picture in pictures] == [str(width)]


WIDE = torch.rand(3, 4, 11, 5, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("weights", "head", "drawn", "name"),
    [
        (WEIGHTS, None, WEIGHTS[2], "each head of layer 3"),
        (WEIGHTS, 1, WEIGHTS[2, 1:], "head 2 of layer 3"),
        (WIDE, None, WIDE[2].mean(dim=0, keepdim=True), "the mean over the heads of layer 3"),
        (WIDE[:, :, :10], None, WIDE[2, :, :10], "each head of layer 3"),
    ],
)
def test_the_picture_is_the_figure_of_the_layer_and_the_head_shown_first(weights, head, drawn, name):
    tokens = [[str(place) for place in range(size)] for size in weights.shape[2:]]
    file = BytesIO()
    plot_attention(drawn, *tokens).savefig(file, dpi=200, metadata={"Software": None})
    explorer = explore_attention(weights, *tokens, layer=2, head=head)
    assert explorer.png == file.getvalue()
    assert name in explorer.description


def test_the_picture_of_tables_is_described_by_what_their_rows_and_columns_are():
    description = explore_positions(TABLES).description
    assert "signed (position by dimension)" in description
    assert "angles (position by pair)" in description
    assert "bias (distance by head)" in description


@pytest.mark.parametrize("limit", [1e-3, 0.0834, 1.0, 3.14159, 31.5, 250.0])
def test_the_numbers_at_the_colour_bars_of_tables_keep_apart(limit):
    table = PositionTable(limit * torch.tensor([[0.3, -1.0], [0.2, 0.7]]))
    figure = _draw_tables({str(number): table for number in range(4)})
    figure.draw_without_rendering()
    bars = [ax for ax in figure.axes if not ax.images]
    assert len(bars) == 4
    labels = [label for bar in bars for label in bar.get_xticklabels() if label.get_text()]
    spans = sorted((label.get_window_extent().x0, label.get_window_extent().x1) for label in labels)
    assert len(spans) == 12  # the two ends, and 0
    assert all(right[0] > left[1] for left, right in itertools.pairwise(spans))


def test_the_same_arrays_make_the_same_explorer():
    first, second = (explore_attention(WEIGHTS.clone(), list(TOKENS)) for _ in range(2))
    assert first == second
    assert explore_positions(TABLES) == explore_positions(dict(TABLES))
    assert first != explore_attention(WEIGHTS.flip(1), TOKENS)


def test_an_input_of_the_size_of_albert_stays_below_a_megabyte():
    weights = torch.randn(12, 12, 32, 32).softmax(dim=-1)
    assert len(explore_attention(weights, ["token"] * 32).html) < 1_000_000


@pytest.mark.filterwarnings("ignore:Glyph")  # the figure's font has not every sign; the page does not need it
@given(st.lists(st.text(), min_size=1, max_size=4))
@settings(max_examples=25)
def test_whatever_the_tokens_the_fragment_holds_them_as_data_alone(tokens):
    explorer = explore_attention(torch.eye(len(tokens))[None, None], tokens)
    parsed = Fragment(explorer.html)
    assert [tag for tag, _ in parsed.elements] == ["div", "img", "style", "script"]
    assert content(explorer)["queries"] == tokens


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_tokens": KEYS}, "got 3 query tokens and 3 key tokens; expected 5 and 5"),
        ({"key_tokens": KEYS}, "got 5 query tokens and 3 key tokens; expected 5 and 5"),
        ({"layer": 3}, "layer=3; expected 0 to 2, as the weights have"),
        ({"head": -1}, "head=-1; expected 0 to 1, as the weights have"),
        ({"query": 5}, "query=5; expected 0 to 4, as the weights have"),
        ({"weights": WEIGHTS * 2 - 1}, "weights run from -1 to .*; expected 0 to 1"),
        ({"weights": WEIGHTS * 2}, "weights run from 0 to 1.*; expected 0 to 1"),
        ({"weights": WEIGHTS.log()}, "weights run from -inf to .*; expected 0 to 1"),
        ({"weights": WEIGHTS / 0}, "weights run from nan to nan; expected 0 to 1"),
    ],
)
def test_weights_that_are_none_and_tokens_that_are_not_theirs_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        explore_attention(**{"weights": WEIGHTS, "query_tokens": TOKENS, **change})


@pytest.mark.parametrize(
    ("tables", "start", "message"),
    [
        ({}, {}, "tables is empty"),
        ({"none": PositionTable(torch.ones(0, 2))}, {}, "the table 'none' has no entry"),
        (
            {"log": PositionTable(torch.zeros(1, 2).log())},
            {},
            "the table 'log' has no entry, or one that is",
        ),
        ({"flat": PositionTable(torch.ones(4))}, {}, r"the table 'flat' has shape \(4,\); expected \(row, column\)"),
        ({"odd": PositionTable(torch.ones(2, 3), hand="clock")}, {}, "the table 'odd' has 3 columns; sines and"),
        (TABLES, {"row": -1}, "row=-1, column=0; choose 0 or more"),
        (TABLES, {"column": -2}, "row=0, column=-2; choose 0 or more"),
    ],
)
def test_tables_that_cannot_be_shown_are_refused(tables, start, message):
    with pytest.raises(ValueError, match=message):
        explore_positions(tables, **start)


def test_a_page_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "page.html"
    explorer = explore_attention(WEIGHTS, TOKENS)
    explorer.save(path)
    assert explorer.html in path.read_text(encoding="utf-8")
    with pytest.raises(FileNotFoundError):
        explorer.save(tmp_path / "absent" / "page.html")
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


@pytest.fixture
def visit(browser, tmp_path):
    """Return a function that opens an explorer, or pages with several, from the disk; nothing may go wrong on them."""
    contexts, problems = [], []

    def open_page(*explorers, body="EXPLORERS", root="<html lang='en'>", **options):
        context = browser.new_context(**{"viewport": {"width": 800, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)  # a busy machine is no failure
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: problems.append(request.url) if request.url.startswith("http") else None)
        path = tmp_path / f"{len(contexts)}.html"
        if body == "EXPLORERS" and len(explorers) == 1:
            explorers[0].save(path)
        else:
            inside = body.replace("EXPLORERS", "\n".join(explorer.html for explorer in explorers))
            path.write_text(f"<!DOCTYPE html>{root}<meta charset='utf-8'><title>Page</title><body>{inside}")
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


def numbers(scope):
    """Return the numbers under the key tokens."""
    return scope.locator(".explorer-key .explorer-number").all_text_contents()


def query(scope, place):
    """Return the button of a query token."""
    return scope.get_by_role("toolbar").get_by_role("button").nth(place)


def expected(layer, head, place):
    """Write the weights that are to be seen; the head None is the mean."""
    stored = ((WEIGHTS.double() * 10_000).round() / 10_000).clamp(min=1e-4) * (WEIGHTS > 0)
    weights = stored[layer].mean(dim=0) if head is None else stored[layer, head]
    return [written(weight) for weight in weights[place]]


NOTHING = ["–"] * 5


def test_pointing_at_a_query_shows_its_weights_until_the_pointer_leaves(visit):
    page = visit(explore_attention(WEIGHTS, TOKENS, head=1, query=2))
    assert numbers(page) == expected(0, 1, 2)
    for place in range(5):
        query(page, place).hover()
        assert numbers(page) == expected(0, 1, place)
    page.mouse.move(1, 1)
    assert numbers(page) == expected(0, 1, 2)
    assert numbers(page) != expected(0, 1, 4)


def test_every_layer_and_head_and_the_mean_can_be_chosen(visit):
    page = visit(explore_attention(WEIGHTS, TOKENS, query=3))
    for layer in range(3):
        page.get_by_role("group", name="Layer").get_by_role("radio", name=str(layer + 1)).click()
        for head, name in [(0, "1"), (1, "2"), (None, "mean")]:
            page.get_by_role("group", name="Head").get_by_role("radio", name=name).click()
            assert numbers(page) == expected(layer, head, 3)
            where = f"(layer {layer + 1}, {'mean over heads' if head is None else f'head {name}'})"
            assert where in page.get_by_role("status").inner_text()


def test_choices_are_made_by_the_arrow_keys(visit):
    page = visit(explore_attention(WEIGHTS, TOKENS, query=1))
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    assert numbers(page) == expected(1, None, 1)
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowLeft")
    assert numbers(page) == expected(1, 1, 1)


def test_queries_are_one_stop_of_the_keyboard_and_the_arrows_go_through_them(visit):
    page = visit(explore_attention(WEIGHTS[:1, :1], TOKENS))
    page.keyboard.press("Tab")
    assert numbers(page) == expected(0, 0, 0)
    page.evaluate("document.addEventListener('keydown', (event) => { window.kept = event.defaultPrevented; })")
    for key, place in [
        ("ArrowRight", 1),
        ("ArrowDown", 2),
        ("ArrowLeft", 1),
        ("End", 4),
        ("ArrowRight", 0),
        ("End", 4),
        ("Home", 0),
    ]:
        page.keyboard.press(key)
        assert numbers(page) == expected(0, 0, place)
        assert page.evaluate("document.activeElement.innerText") == TOKENS[place]
        assert page.get_by_role("button", name=f"{TOKENS[place]}, query {place + 1} of 5", exact=True).count() == 1
        assert page.evaluate("window.kept") is True  # the page does not scroll
    for key in ("ArrowUp", "ArrowUp", "Enter"):
        page.keyboard.press(key)
    assert query(page, 3).get_attribute("aria-pressed") == "true"
    page.keyboard.press("Tab")  # out of the toolbar, and of the page
    assert page.locator("button:focus").count() == 0
    assert numbers(page) == expected(0, 0, 3)
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.innerText") == TOKENS[3]


def test_a_click_keeps_a_query_and_a_second_one_or_escape_lets_it_go(visit):
    page = visit(explore_attention(WEIGHTS, TOKENS, head=0))
    query(page, 4).click()
    query(page, 1).hover()
    assert numbers(page) == expected(0, 0, 1)
    page.mouse.move(1, 1)
    assert numbers(page) == expected(0, 0, 4)
    query(page, 4).click()
    assert numbers(page) == NOTHING
    assert "Point at a query" in page.get_by_role("status").inner_text()
    query(page, 2).click()
    page.keyboard.press("Escape")
    assert numbers(page) == NOTHING
    assert page.locator("[aria-pressed=true]").count() == 0


def test_a_tap_keeps_a_query_and_a_second_one_lets_it_go(visit):
    page = visit(explore_attention(WEIGHTS, TOKENS, head=0), has_touch=True, is_mobile=True)
    query(page, 3).tap()
    assert numbers(page) == expected(0, 0, 3)
    query(page, 4).tap()
    assert numbers(page) == expected(0, 0, 4)
    query(page, 4).tap()
    assert numbers(page) == NOTHING
    page.get_by_role("radio", name="2").last.tap()
    query(page, 0).tap()
    assert numbers(page) == expected(0, 1, 0)


def test_a_sentence_says_what_is_attended_to_the_largest_first(visit):
    weights = torch.tensor([[[[0.125, 0.6251, 0.2499], [0.0, 0.0, 0.0], [0.003, 0.997, 0.0]]]])
    page = visit(explore_attention(weights, ["a", "b", "c"], KEYS))
    status = page.get_by_role("status")
    assert status.inner_text() == "a attends to Film 0.63, war 0.25, der 0.13."
    assert status.evaluate("element => element.ariaLive ?? 'implicit'") in ("polite", "implicit")
    query(page, 1).click()
    assert status.inner_text() == "b attends nowhere: its weights are all 0."
    assert numbers(page) == ["0", "0", "0"]
    query(page, 2).click()
    assert status.inner_text() == "c attends to Film 1.00."
    assert numbers(page) == ["<0.01", "1.00", "0"]
    assert page.get_by_role("radio").count() == 0  # one layer, one head: nothing to choose


def test_the_shade_of_a_key_and_the_maps_grow_with_the_weight(visit):
    page = visit(explore_attention(WEIGHTS, TOKENS, head=0))
    shares = (WEIGHTS[0, 0] / WEIGHTS.max()).numpy()
    for name, values in [("--shade", np.sqrt(shares[0])), ("--length", shares[0])]:
        styles = page.locator(".explorer-key").evaluate_all(
            "(keys, of) => keys.map(key => key.style.getPropertyValue(of))", name
        )
        np.testing.assert_allclose([float(style) for style in styles], values, atol=2e-3)
    for layer in (0, 2):
        page = visit(explore_attention(WEIGHTS, TOKENS))
        if layer:
            page.get_by_role("group", name="Layer").get_by_role("radio").nth(layer).click()
        maps = page.locator("canvas").evaluate_all(
            """all => all.map(canvas => [...canvas.getContext('2d').getImageData(0, 0, 5, 5).data]
                .filter((_, place) => place % 4 === 3))"""
        )
        heads = torch.cat([WEIGHTS[layer], WEIGHTS[layer].mean(dim=0, keepdim=True)]) / WEIGHTS.max()
        np.testing.assert_allclose(np.array(maps) / 255, heads.sqrt().flatten(1), atol=4e-3)


def middle(locator):
    """Return the middle of an element."""
    box = locator.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_marks_on_the_maps_are_on_what_is_shown(visit):
    page = visit(explore_attention(WEIGHTS, TOKENS, query=3))
    canvas, marker = page.locator("canvas").last, page.locator(".explorer-marker").last
    box = canvas.bounding_box()
    assert middle(marker) == pytest.approx((middle(canvas)[0], box["y"] + 3.5 / 5 * box["height"]), abs=0.6)
    query(page, 3).click()
    page.mouse.move(1, 1)
    assert not marker.is_visible()
    page = visit(explore_positions({"signed": SIGNED}, row=1, column=3))
    box = page.locator("canvas").bounding_box()
    across, down = page.locator(".explorer-marker").all()
    assert middle(across) == pytest.approx((box["x"] + box["width"] / 2, box["y"] + 1.5 / 3 * box["height"]), abs=0.6)
    assert middle(down) == pytest.approx((box["x"] + 3.5 / 4 * box["width"], box["y"] + box["height"] / 2), abs=0.6)


def texts(page, selector):
    """Return what the elements hold, to the letter."""
    return page.locator(selector).evaluate_all("all => all.map(one => one.textContent)")


def test_hostile_tokens_are_shown_and_not_run(visit):
    page = visit(explore_attention(torch.eye(len(HOSTILE))[None, None], HOSTILE))
    assert texts(page, "button .explorer-token") == HOSTILE
    assert texts(page, ".explorer-key .explorer-token") == HOSTILE
    for place in range(1, len(HOSTILE)):  # the first is kept already
        query(page, place).click()
        assert texts(page, ".explorer-readout .explorer-token")[0] == HOSTILE[place]
    assert page.evaluate("window.fired") is None
    assert page.locator("img").count() == 1
    assert page.get_by_role("button", name="empty token, query 5 of 11", exact=True).count() == 1


@pytest.mark.filterwarnings("ignore:Glyph")
def test_hostile_names_of_tables_are_shown_and_not_run(tmp_path, visit):
    names = [*HOSTILE[:-1], "$\\nothing$", "\ud800", "a|b`c"]
    tables = {name: PositionTable(torch.ones(2, 2), row=name, column=name) for name in names}
    explorer = explore_positions(tables)
    explorer.save(tmp_path / "hostile.html")
    page = visit(explorer)
    assert page.evaluate("window.fired") is None
    assert page.locator("img").count() == 1
    for shown in (explorer.title, explorer.description):
        assert shown.isprintable()
        assert r"$\nothing$" in shown


@pytest.mark.filterwarnings("ignore:Glyph")
@given(tokens=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=6))
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_tokens_are_shown_as_they_are(visit, tokens):
    page = visit(explore_attention(torch.eye(len(tokens))[None, None], tokens))
    assert texts(page, "button .explorer-token") == tokens
    page.close()


@pytest.mark.parametrize("explorer", [explore_attention(WEIGHTS, TOKENS), explore_positions(TABLES)])
def test_every_class_has_a_name_of_its_own_which_no_page_styles(visit, explorer):
    page = visit(explorer)
    names = page.locator("form [class]").evaluate_all("all => all.flatMap(one => [...one.classList])")
    assert len(names) > 10
    assert [name for name in names if not name.startswith("explorer-")] == []


INSERTED = """<div id="output"></div><template id="held">EXPLORERS</template><script>
const output = document.getElementById("output");
output.innerHTML = document.getElementById("held").innerHTML;
for (const old of output.querySelectorAll("script")) {
  const script = document.createElement("script");
  script.textContent = old.textContent;
  PLACE
}
</script>"""
WAYS = {
    "inline": "<div>EXPLORERS</div>",
    "as Jupyter inserts it": INSERTED.replace("PLACE", "old.replaceWith(script);"),
    "as jQuery runs it": INSERTED.replace("PLACE", "old.remove(); document.head.append(script); script.remove();"),
}


@pytest.mark.parametrize("way", WAYS)
def test_several_explorers_on_a_page_work_each_by_itself(visit, way):
    same = explore_attention(WEIGHTS, TOKENS, head=0)
    page = visit(same, explore_positions(TABLES), same, body=WAYS[way])
    first, positions, second = page.locator(".companion-explorer").all()
    assert page.locator("form").count() == 3
    query(second, 2).click()
    second.get_by_role("group", name="Layer").get_by_role("radio", name="3").click()
    assert numbers(first) == expected(0, 0, 0)
    assert numbers(second) == expected(2, 0, 2)
    assert [scope.locator("input:checked").count() for scope in (first, positions, second)] == [2, 1, 2]


@pytest.mark.parametrize("explorer", [explore_attention(WEIGHTS, TOKENS), explore_positions(TABLES)])
def test_jupyter_leaves_the_keys_to_an_explorer(visit, explorer):
    page = visit(explorer)
    for target in page.locator("button, input").all():
        assert target.evaluate("target => target.closest('[data-lm-suppress-shortcuts=true]') !== null")


def test_an_explorer_works_in_a_frame_of_its_own(visit):
    explorer = explore_attention(WEIGHTS, TOKENS, head=0)
    frame = (
        f'<iframe title="Output" sandbox="allow-scripts" height="600" srcdoc="{html.escape(explorer.html)}"></iframe>'
    )
    page = visit(body=f"<main>{frame}</main>")
    scope = page.frame_locator("iframe")
    query(scope, 1).click()
    assert numbers(scope) == expected(0, 0, 1)


@pytest.mark.parametrize("explorer", [explore_attention(WEIGHTS, TOKENS), explore_positions(TABLES)])
def test_without_scripts_there_is_the_figure(visit, explorer):
    page = visit(explorer, java_script_enabled=False)
    picture = page.get_by_role("img", name=explorer.description)
    assert picture.is_visible()
    assert picture.bounding_box()["width"] > 100
    assert page.locator("form").count() == 0
    page = visit(explorer)
    assert not page.get_by_alt_text(explorer.description).is_visible()
    page.emulate_media(media="print")
    assert page.get_by_alt_text(explorer.description).is_visible()
    assert not page.locator("form").is_visible()


LONG = explore_attention(torch.rand(12, 12, 40, 40), [f"token {'n' * n}" for n in range(40)])


@pytest.mark.parametrize("explorer", [LONG, explore_positions(TABLES)])
def test_a_phone_of_320_pixels_needs_no_scrolling_sideways(visit, explorer):
    page = visit(explorer, viewport={"width": 320, "height": 640})
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    for target in page.locator("button, input").all():
        box = target.bounding_box()
        assert min(box["width"], box["height"]) >= 24


EXPLORERS = {
    "attention": explore_attention(WEIGHTS, TOKENS),
    "hostile": explore_attention(torch.eye(len(HOSTILE))[None, None], HOSTILE),
    "positions": explore_positions(TABLES),
}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", EXPLORERS)
def test_axe_finds_no_fault(visit, name, scheme):
    page = visit(EXPLORERS[name], color_scheme=scheme, reduced_motion="reduce")
    for button in page.get_by_role("button").all()[:3]:
        button.click()
    faults = Axe().run(page).response["violations"]
    assert [(fault["id"], fault["impact"], fault["nodes"][0]["html"]) for fault in faults] == []


GROUND = "getComputedStyle(document.querySelector('.companion-explorer form')).backgroundColor"
DARK, LIGHT = "rgb(25, 29, 36)", "rgb(255, 255, 255)"


@pytest.mark.parametrize(
    ("root", "scheme", "ground"),
    [
        ("<html>", "light", LIGHT),
        ("<html>", "dark", DARK),
        ("<html data-theme='dark'>", "light", DARK),
        ("<html data-theme='light'>", "dark", LIGHT),
        ("<html theme='dark'>", "light", DARK),
    ],
)
def test_the_theme_of_the_page_counts_more_than_that_of_the_system(visit, root, scheme, ground):
    page = visit(EXPLORERS["attention"], body="<main>EXPLORERS</main>", root=root, color_scheme=scheme)
    assert page.evaluate(GROUND) == ground


@pytest.mark.parametrize(
    ("mark", "ground"),
    [
        ("body.dataset.jpThemeLight = 'true'", LIGHT),
        ("body.dataset.jpThemeLight = 'false'", DARK),
        ("body.className = 'vscode-light'", LIGHT),
        ("body.className = 'vscode-dark'", DARK),
    ],
)
def test_the_themes_of_jupyter_and_of_vs_code_are_followed(visit, mark, ground):
    page = visit(EXPLORERS["attention"], color_scheme="dark" if ground == LIGHT else "light")
    page.evaluate(f"document.{mark}")
    assert page.evaluate(GROUND) == ground


@pytest.mark.parametrize(("motion", "moves"), [("reduce", False), ("no-preference", True)])
def test_nothing_moves_for_who_wants_no_motion(visit, motion, moves):
    page = visit(EXPLORERS["attention"], reduced_motion=motion)
    durations = page.locator(".explorer-key").first.evaluate("key => getComputedStyle(key).transitionDuration")
    assert any(float(seconds) > 0 for seconds in re.findall(r"[\d.]+", durations)) is moves


def choose_table(page, name):
    page.get_by_role("group", name="Encoding").get_by_role("radio", name=name).click()


def shown(page):
    """Return what the explorer of positions says, with plain minus signs."""
    return page.get_by_role("status").inner_text().replace("−", "-")


def test_sliders_go_through_every_entry_by_the_keyboard(visit):
    page = visit(explore_positions({"signed": SIGNED}))
    rows, columns = page.get_by_role("slider").all()
    rows.focus()
    page.keyboard.press("Home")
    for row, values in enumerate(SIGNED.values.tolist()):
        columns.focus()
        page.keyboard.press("Home")
        for column, value in enumerate(values):
            text = f"{value:.3g}".replace("e-07", "e-7")
            assert shown(page) == f"signed, position {row}, dimension {column}: {text}."
            text = f"dimension {column}, value {text}"
            assert columns.get_attribute("aria-valuetext").replace("−", "-") == text
            page.keyboard.press("ArrowRight")
        rows.focus()
        page.keyboard.press("ArrowRight")
    assert page.locator(".explorer-place").all_text_contents() == ["2", "3"]


def test_a_row_and_a_column_are_drawn_with_the_entry_marked_on_both(visit):
    page = visit(explore_positions({"signed": SIGNED}, row=2, column=1))
    row, column = page.locator("polyline").evaluate_all(
        "all => all.map(one => one.getAttribute('points').split(' ').map(point => point.split(',').map(Number)))"
    )
    low, high = SIGNED.values.min().item(), SIGNED.values.max().item()
    for points, values, place, circle in [
        (row, SIGNED.values[2], 1, page.locator("circle").nth(0)),
        (column, SIGNED.values[:, 1], 2, page.locator("circle").nth(1)),
    ]:
        heights = [(100 - y) / 94 * (high - low) + low for _, y in points]
        np.testing.assert_allclose(heights, values.numpy(), atol=1e-3)
        assert np.ptp(np.diff([x for x, _ in points])) < 1e-9
        assert [float(circle.get_attribute(name)) for name in ("cx", "cy")] == points[place]


def test_the_map_is_red_above_0_and_blue_below_and_a_click_chooses_an_entry(visit):
    page = visit(explore_positions({"signed": SIGNED}))
    pixels = page.locator("canvas").evaluate("c => [...c.getContext('2d').getImageData(0, 0, 4, 3).data]")
    pixels = np.array(pixels).reshape(3, 4, 4)
    values = SIGNED.values.numpy()
    np.testing.assert_allclose(pixels[..., 3] / 255, np.abs(values) / 4, atol=3e-3)
    opaque = pixels[..., 3] > 100
    assert ((pixels[..., 0] > pixels[..., 2]) == (values > 0))[opaque].all()
    box = page.locator("canvas").bounding_box()
    page.mouse.click(box["x"] + 0.6 * box["width"], box["y"] + 0.9 * box["height"])
    assert shown(page) == "signed, position 2, dimension 2: 3."
    page.mouse.down()
    page.mouse.move(box["x"] + 0.1 * box["width"], box["y"] + 0.5 * box["height"])
    page.mouse.up()
    assert shown(page).startswith("signed, position 1, dimension 0")


def test_each_encoding_can_be_chosen_and_keeps_the_place_as_far_as_it_goes(visit):
    page = visit(explore_positions(TABLES, row=2, column=3))
    assert shown(page) == "signed, position 2, dimension 3: -4."
    choose_table(page, "angles")
    assert shown(page).startswith("angles, position 2, pair 1: 0.2.")
    choose_table(page, "bias")
    assert shown(page) == "bias, distance 1, head 0: 0."
    assert page.locator(".explorer-slider .explorer-title").all_text_contents() == ["distance", "head"]
    assert [text.split(";")[0] for text in page.locator(".explorer-axis").all_text_contents()] == ["distance", "head"]
    assert not page.locator(".explorer-dial").is_visible()


@pytest.mark.parametrize(
    ("name", "row", "column", "said", "point"),
    [
        ("angles", 1, 0, "pair 0: turned by 1 radians", (np.cos(1), np.sin(1))),
        ("angles", 3, 0, "pair 0: turned by -3 radians", (np.cos(-3), np.sin(-3))),
        ("angles", 2, 1, "pair 1: turned by 0.2 radians", (np.cos(0.2), np.sin(0.2))),
        ("clock", 1, 0, "pair 0: sine 1 to the right, cosine 0 upwards", (1, 0)),
        ("clock", 1, 3, "pair 1: sine 0.6 to the right, cosine 0.8 upwards", (0.6, 0.8)),
    ],
)
def test_the_hand_points_where_the_pair_is_turned(visit, name, row, column, said, point):
    page = visit(explore_positions({name: TABLES[name]}, row=row, column=column))
    assert f"The hand of {said}" in shown(page)
    hand = page.locator(".explorer-hand")
    place = [float(hand.get_attribute(at)) for at in ("x2", "y2")]
    np.testing.assert_allclose(place, [60 * point[0], -60 * point[1]], atol=1e-6)
