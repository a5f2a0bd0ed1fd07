"""The page as a reader meets it: opened from disk, clicked, typed at, on a desk and on a phone."""

import pytest

from tests.browser.sweeps import NASTY, SECRET

TAB, ENTER, SPACE, CONTROL = "\ue004", "\ue007", " ", "\ue009"


def overflow(page) -> list[int]:
    return page.js("return [document.documentElement.scrollWidth, document.documentElement.clientWidth]")


class TestOpening:
    @pytest.mark.parametrize("name", ["large", "nasty", "failures"])
    def test_draws_offline_and_asks_nobody(self, page, written, name):
        page.open(written(name))
        assert page.log("browser") == []
        assert page.requested() <= {"file", "data", "blob"}

    def test_a_script_that_is_not_ours_does_not_run(self, page, written):
        page.open(written("large"))
        page.js(
            "const s = document.createElement('script'); s.textContent = 'document.title = 1'; document.body.append(s)"
        )
        assert page.driver.title == "large · keepfrac"
        assert "Content Security Policy" in page.log("browser")[0]["message"]

    def test_a_front_for_each_task_and_cost_that_differs(self, page, written):
        page.open(written("large"))
        assert page.texts("#panels h3") == ["rotten_tomatoes, all-MiniLM-L6-v2", "sst2, all-MiniLM-L6-v2"]
        assert len(page.all("#panels .plot svg.main-svg")) == 3 * 4  # plotly lays three on each other
        assert len(page.all("#panels .plot:first-child .yerror")) >= 7
        page.one("#axes input[value=params]").click()
        assert len(page.all("#panels .plot")) == 6

    @pytest.mark.parametrize("width", [390, 1280])
    def test_pictures_fill_their_places(self, page, written, width):
        page.open(written("large"), width)
        page.js("document.querySelector('#runs tbody input').click()")
        sizes = "return [...document.querySelectorAll('.plot')].map((one) => [one.clientWidth, one.scrollWidth,"
        sizes = page.js(sizes + "one.querySelector('.main-svg').clientWidth])")
        assert len(sizes) == 6
        assert all(wide > 290 and wide == inside == drawn for wide, inside, drawn in sizes)

    def test_markers_on_the_front_are_filled(self, page, written):
        page.open(written("large"))
        opened = page.js("return document.querySelector('#panels .plot').data.slice(1).flatMap((t) => t.marker.symbol)")
        assert any(symbol.endswith("-open") for symbol in opened)
        assert "star" in opened  # the dense baseline scores best

    def test_dark_where_the_reader_wants_it(self, page, written):
        dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
        try:
            page.open(written("large"))
            ground = "return getComputedStyle(document.body).backgroundColor"
            assert page.js(ground) == "rgb(13, 17, 23)"
            page.one("#theme").click()
            assert page.js(ground) == "rgb(246, 248, 250)"
        finally:
            page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


class TestFilters:
    def test_leave_what_was_chosen(self, page, written):
        page.open(written("large"))
        page.one("input[name=task][value=sst2]").click()
        page.one("input[name=method][value=norm]").click()
        page.one("input[name=method][value=nosp]").click()
        assert page.texts("#shown") == ["9 of 42 runs"]
        assert set(page.texts("#runs tbody th")) == {"norm", "nosp"}
        assert len(page.all("#means tbody tr")) == 3
        assert page.texts("#panels h3") == ["sst2, all-MiniLM-L6-v2"]
        assert page.texts("#problems article") == []  # both are of bkrz
        page.one("#filters button[type=reset]").click()
        assert page.texts("#shown") == ["42 of 42 runs"]
        assert len(page.all("#problems article")) == 2

    def test_by_keyboard(self, page, written):
        page.open(written("large"))
        page.js("document.querySelector('#theme').focus()")
        page.press(TAB, SPACE)
        assert page.texts("#shown") == ["21 of 42 runs"]
        outline = "return getComputedStyle(document.querySelector('#filters input:focus-visible + span')).outlineStyle"
        assert page.js(outline) == "solid"


class TestSorting:
    def column(self, page, title: str) -> list[str]:
        place = next(n for n, text in enumerate(page.texts("#runs thead th")) if text == title)
        return page.texts(f"#runs tbody tr > :nth-child({place + 1})")

    def test_by_keyboard_both_ways(self, page, written):
        page.open(written("large"))
        heads = page.all("#runs thead th")
        head = next(one for one in heads if one.text.startswith("test accuracy"))
        page.js("arguments[0].querySelector('button').focus()", head)
        page.press(ENTER)
        scores = self.column(page, "test accuracy")
        assert (scores, head.get_attribute("aria-sort")) == (sorted(scores), "ascending")
        page.press(SPACE)
        scores = self.column(page, "test accuracy")
        assert (scores, head.get_attribute("aria-sort")) == (sorted(scores, reverse=True), "descending")
        assert page.focus() == "test accuracy"
        assert {one.get_attribute("aria-sort") for one in heads if one != head} == {"none", None}
        assert "descending" in page.one("#said").text

    def test_numbers_sort_as_numbers(self, page, written):
        page.open(written("large"))
        next(one for one in page.all("#means thead button") if one.text.startswith("step")).click()
        milliseconds = [float(text.split()[0]) for text in page.texts("#means tbody tr > :nth-child(11)")]
        assert milliseconds == sorted(milliseconds)


class TestCurves:
    def names(self, page) -> list[str]:
        return page.texts("#chosen strong")

    def test_of_a_marker_that_is_clicked(self, page, written):
        page.open(written("large"))
        assert not page.one("#plots").is_displayed()
        page.point_at(0, 2, 0)  # the first trace is the front, the second the dense baseline
        assert self.names(page) == [f"nosp, keep 1, seed {seed}, rotten_tomatoes" for seed in (0, 1, 2)]
        lengths = page.js("return document.querySelector('#plot-0').data.map((t) => t.x.length)")
        assert all(150 < length <= 200 for length in lengths)
        validation = page.js("return document.querySelector('#plot-1').data[0]")
        assert validation["x"] == [49, 99, 149, 199, 249, 299]  # not the delivered model's at 300
        assert page.js("return document.querySelector('#metric-1').value") == "val/accuracy"

    def test_of_rows_by_keyboard_and_of_another_metric(self, page, written):
        page.open(written("large"))
        page.js("document.querySelector('#runs tbody input').focus()")
        page.press(SPACE)
        page.js("document.querySelectorAll('#runs tbody input')[21].focus()")
        page.press(SPACE)
        assert len(self.names(page)) == 2
        page.js("document.querySelector('#metric-1').focus()")
        page.press("k")
        assert page.js("return document.querySelector('#plot-1').data[0].y") == [1.0] * 6
        page.one("#chosen button:not(.copy)").click()
        assert len(self.names(page)) == 1
        assert len(page.all("#runs tbody tr.on")) == 1
        page.one("#clear").click()
        assert self.names(page) == page.all("#runs tbody tr.on") == []

    def test_of_a_row_that_is_clicked(self, page, written):
        page.open(written("large"))
        page.all("#means tbody tr")[1].click()
        assert self.names(page) == [f"bkrz, keep 0.1, seed {seed}, rotten_tomatoes" for seed in (0, 1, 2)]


class TestCommand:
    def test_is_copied(self, page, written):
        page.open(written("large"))
        page.one("#runs tbody tr:nth-child(4) button.copy").click()
        assert page.soon(lambda: page.one("#said").text).startswith("Copied the command of bkrz")
        page.js("const t = document.createElement('textarea'); t.id = 'paste'; document.body.prepend(t); t.focus()")
        page.one("#paste").send_keys(CONTROL, "v")
        expected = "python -m src.main task=rotten_tomatoes method=bkrz keep_frac=0.1 seed=0 lr=5e-05 name=demo"
        assert page.js("return document.querySelector('#paste').value") == expected


class TestFailures:
    def test_are_shown_with_the_end_of_their_log(self, page, written):
        page.open(written("large"))
        assert page.one("#summary a").text == "2 without a result"
        failed = page.all("#problems article")[0].text
        assert "failed" in failed
        assert "RuntimeError: DataLoader worker (pid 4711) is killed" in failed
        assert 'File ".../run.py", line 64' in failed
        assert "python -m src.main task=sst2 method=bkrz keep_frac=0.5 seed=0" in failed

    def test_alone_make_a_page(self, page, written):
        page.open(written("failures"))
        assert len(page.all("#problems article")) == 2
        assert not page.one("#runs").is_displayed()


class TestEscaping:
    def test_markup_is_text_everywhere(self, page, written):
        page.open(written("nasty"))
        for box in page.all("#runs tbody input"):
            box.click()
        page.one("#chosen summary").click()
        assert page.driver.title == "nasty · keepfrac"
        assert page.all("main b, main img, main script") == []
        assert NASTY in page.one("#problems .error").text
        assert NASTY in page.one("#problems pre").text
        assert any(NASTY in text for text in page.texts("#chosen dd"))
        assert any(NASTY in text for text in page.texts("#legend li"))
        assert page.log("browser") == []

    def test_hover_texts_are_text(self, page, written):
        page.open(written("nasty"))
        page.point_at(0, 2, 0, click=False)
        text = page.js("return [...document.querySelectorAll('.hoverlayer text')].map((t) => t.textContent).join()")
        assert "<b>bold</b> &amp;" in text
        assert page.all(".hoverlayer a") == []

    def test_no_secret_is_in_the_file(self, written):
        text = written("nasty").read_text(encoding="utf-8")
        assert SECRET not in text
        assert "logger.api_key=***" in text


class TestWidths:
    @pytest.mark.parametrize("name", ["large", "nasty", "failures"])
    @pytest.mark.parametrize("width", [390, 1280])
    def test_the_page_never_scrolls_sideways(self, page, written, name, width):
        page.open(written(name), width)
        for box in page.all("#runs tbody input")[:3]:
            page.js("arguments[0].click()", box)
        for summary in page.all("#chosen summary"):
            page.js("arguments[0].click()", summary)
        needed, there = overflow(page)
        assert needed <= there <= width

    def test_a_wide_table_scrolls_in_its_box(self, page, written):
        page.open(written("large"), 390)
        inside, outside = page.js(
            "const box = document.querySelector('#runs .scroll'); return [box.scrollWidth, box.clientWidth]"
        )
        assert inside > outside
        assert page.one("#runs .scroll").get_attribute("tabindex") == "0"

    def test_everything_that_acts_has_a_name(self, page, written):
        page.open(written("large"))
        page.one("#runs tbody input").click()
        names = page.js(
            "return [...document.querySelectorAll('button, input, select, a')].map((one) =>"
            " one.getAttribute('aria-label') || one.textContent || (one.labels[0] || {}).textContent || '')"
        )
        assert all(name.strip() for name in names)
