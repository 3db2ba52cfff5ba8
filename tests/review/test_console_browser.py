"""The console in a real Chromium: reading by keyboard alone, and what the page does with what it is given."""

import json
import subprocess
import sys

import pytest
from reading_desk import PATIENCE
from reading_room import KINDS, MODALITIES, piece
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.actions.mouse_button import MouseButton
from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from medq_ray.config import Review
from medq_ray.review.queue import Queue
from medq_ray.review.store import Store

pytestmark = pytest.mark.e2e
SCRIPT = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
SMALLEST = 44
"""CSS pixels of a side of a button that a finger finds."""


def every_kind(pictures: dict[str, str], count: int) -> list[dict]:
    return [piece(n, KINDS[n % 5], MODALITIES[n // 2 % 5], pictures) for n in range(count)]


def test_ten_items_by_keyboard_alone(desk, large, artefacts):
    at = desk(every_kind(large, 12), {"ann": "reviewer"})
    at.size(1280, 720)
    at.log_in("ann")
    assert at.shown() == "1"
    at.browser.save_screenshot(artefacts / "reading-1280x720.png")
    assert at.give("a") == "2"
    loaded = at.browser.execute_script("return performance.getEntriesByType('resource').map((one) => one.name)")
    WebDriverWait(at.browser, PATIENCE).until(lambda _: any(name.endswith("/items/3/images/0") for name in (
        at.browser.execute_script("return performance.getEntriesByType('resource').map((one) => one.name)"))))
    assert not any(name.endswith("/items/4/images/0") for name in loaded)  # the next is at hand, no more
    at.press("e")
    at.press("3")
    assert at.text(".diff del") and at.text(".diff ins")
    at.browser.save_screenshot(artefacts / "edit-1280x720.png")
    assert at.give(Keys.ENTER) == "3"
    at.press("r")
    at.browser.save_screenshot(artefacts / "reject-1280x720.png")
    assert at.give("2") == "4"
    assert at.give("a") == "5"
    assert at.give("u") == "4"  # a description: accepted too early, accepted again
    assert at.give("a") == "5"
    for number in range(5, 11):
        assert at.shown() == str(number)
        at.give("a")
    at.await_text("#left", "10 of 12 done · 2 to read")
    assert "an hour · median" in at.text("#pace")
    done = subprocess.run([sys.executable, "-m", "medq_ray.cli", "review", "stats", "--json", "--store", str(at.store)],
                          capture_output=True, text=True, check=True)  # fmt: skip
    found = json.loads(done.stdout)
    assert found["total"]["verdicts"] == {"accept": 8, "edit": 1, "reject": 1} and found["total"]["done"] == 10
    assert found["total"]["review_rate"] == pytest.approx(10 / 24)
    (ann,) = found["reviewers"]
    assert ann["undone"] == 1 and 0 < ann["minutes"] < 5
    at.browser.get(f"{at.address}/stats")
    at.browser.save_screenshot(artefacts / "stats-1280x720.png")
    assert "80 (49–94)" in at.text("tbody")
    assert at.complaints() == []


def test_a_description_is_edited_by_its_fields(desk, large, artefacts):
    at = desk([piece(n, "description", "ct", large) for n in range(3)], {"ann": "reviewer"})
    at.size(1024, 768)
    at.log_in("ann")
    at.browser.save_screenshot(artefacts / "description-1024x768.png")
    at.press("e")
    at.press("4")  # ring, beside metal
    at.press("s")
    area = at.browser.find_element(By.TAG_NAME, "textarea")
    said = "A ct image. Severe metal. Severe ring. Overall, the quality of this image is reject."
    assert area.get_property("value").lower() == said.lower()
    at.press("u")
    assert area.get_property("value").endswith("is usable.")
    at.press("t")
    at.press("\b")
    area.send_keys(" for a quick look.")
    at.browser.save_screenshot(artefacts / "edit-1024x768.png")
    at.press(Keys.ESCAPE)
    at.browser.refresh()  # a draft outlives it
    at.await_item()
    at.press("e")
    area = at.browser.find_element(By.TAG_NAME, "textarea")
    assert area.get_property("value").endswith("for a quick look.")
    at.press(Keys.CONTROL, Keys.ENTER)
    at.await_text("#status", "expected a description that ends in a verdict")
    assert at.shown() == "1" and area.is_displayed()  # it does not end in a verdict: refused, and nothing is lost
    at.press("g")
    assert at.give(Keys.ENTER) == "2"
    assert at.complaints() == [] or all("400" in line for line in at.complaints())


def test_every_control_has_a_name_and_is_large_enough_for_a_finger(desk, large, artefacts):
    at = desk(every_kind(large, 6)[4:] + every_kind(large, 4), {"ann": "reviewer"})
    for width, height in ((1280, 720), (1024, 768), (768, 1024)):
        at.size(width, height)
        at.log_in("ann")
        at.browser.save_screenshot(artefacts / f"pair-{width}x{height}.png")
        for opened in ("", "e", Keys.ESCAPE + "r"):
            at.press(opened) if opened else None
            for control in at.browser.find_elements(By.CSS_SELECTOR, "button, input, textarea, a, canvas, img"):
                if not control.is_displayed():
                    continue
                assert control.accessible_name, control.get_attribute("outerHTML")
                if control.tag_name in ("button", "a"):
                    assert control.size["height"] >= SMALLEST and control.size["width"] >= SMALLEST, control.text
        at.press(Keys.ESCAPE)
        for selector in ("#accept", "#undo", "#status", "#question"):
            box = at.browser.find_element(By.CSS_SELECTOR, selector).rect
            assert box["y"] + box["height"] <= height and box["x"] + box["width"] <= width
        assert at.browser.execute_script("return document.documentElement.scrollWidth") <= width
        at.press("?")
        assert at.browser.find_element(By.ID, "help").is_displayed()
        at.browser.save_screenshot(artefacts / f"keys-{width}x{height}.png")
        at.press(Keys.ESCAPE)


def test_the_view_changes_and_is_reset(desk, large, artefacts):
    at = desk([piece(n, "how", "ct", large) for n in range(2)], {"ann": "reviewer"})
    at.size(1280, 720)
    at.log_in("ann")

    def view() -> str:
        at.browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
        return at.text("#view")

    def mean() -> float:
        return at.browser.execute_script("""
            const canvas = document.querySelector("#panes canvas");
            const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
            return pixels.reduce((sum, value) => sum + value, 0) / pixels.length;""")

    fitted, grey = view(), mean()
    assert "level 128, window 255" in fitted
    at.press("i")
    assert "inverted" in view() and mean() > grey
    at.press("0")
    assert view() == fitted and mean() == grey
    at.press("4")
    assert "level 195, window 120" in view() and mean() < grey
    at.browser.save_screenshot(artefacts / "bone-1280x720.png")
    at.press(Keys.SHIFT, Keys.ARROW_UP)
    assert "level 205" in view()
    at.press("0")
    canvas = at.browser.find_element(By.TAG_NAME, "canvas")
    drag = ActionChains(at.browser).move_to_element(canvas)
    drag.key_down(Keys.SHIFT).click_and_hold().move_by_offset(40, -20).release().key_up(Keys.SHIFT).perform()
    assert "level 138, window 295" in view()
    drag = ActionChains(at.browser).move_to_element(canvas)
    drag.w3c_actions.pointer_action.pointer_down(button=MouseButton.RIGHT)
    drag.w3c_actions.pointer_action.move_by(-40, 20).pointer_up(button=MouseButton.RIGHT)
    drag.perform()
    assert view() == fitted and mean() == grey
    ActionChains(at.browser).move_to_element(canvas).click_and_hold().move_by_offset(300, 0).release().perform()
    assert view() == fitted and mean() < grey  # half of it is outside
    at.press("0")
    ActionChains(at.browser).scroll_from_origin(ScrollOrigin.from_element(canvas), 0, -100).perform()
    assert int(view().split(" %")[0]) > int(fitted.split(" %")[0])
    at.press("0")
    at.press("+")
    assert int(view().split(" %")[0]) == pytest.approx(1.25 * int(fitted.split(" %")[0]), rel=0.02)


def test_what_cannot_be_seen_cannot_be_accepted(desk, large):
    pieces = [piece(n, "how", "ct", large) for n in range(2)]
    pieces[0]["payload"]["images"] = ["/nowhere.png"]
    at = desk(pieces, {"ann": "reviewer"})
    at.log_in("ann")
    assert "image 0 of item 1 cannot be read" in at.text("#panes")
    for key in "aer":
        at.press(key)
    assert at.shown() == "1" and not at.browser.find_element(By.ID, "sheet").text
    assert at.give("s", "3") == "2"


def test_script_in_every_text_stays_text(desk, large, tmp_path):
    label = f"{SCRIPT}. Overall, the quality of this image is good."
    pieces = [piece(n, "description", "mri", large, reads=2, label=label, route=SCRIPT) for n in range(2)]
    at = desk(pieces, {"ann": "reviewer", "ben": "reviewer", "lea": "lead"})
    store = Store(at.store)
    queue = Queue(store, Review())
    lease = queue.lease("ann")
    queue.verdict("ann", lease.token, "edit", after=f"{SCRIPT} Severe blur. {label}", seconds=1)
    lease = queue.lease("ben")
    queue.verdict("ben", lease.token, "reject", reason=SCRIPT, seconds=1)
    store.close()
    at.log_in("lea")
    at.press("f")
    at.press("0")
    assert SCRIPT in at.text("#reads") and SCRIPT in at.text("#facts")
    at.press(SCRIPT, Keys.ENTER)
    at.await_item("1")
    at.press("e")
    assert SCRIPT in at.text(".diff")
    at.browser.get(f"{at.address}/stats")
    assert at.browser.title == "Statistics · medq review"
    assert at.complaints() == []


def test_time_counts_while_somebody_works(desk, large):
    at = desk([piece(0, "how", "ct", large)], {"ann": "reviewer"})
    at.log_in("ann")
    found = at.browser.execute_async_script("""
        const done = arguments[0];
        import("/static/time.js").then(({ ActiveTime }) => {
          let now = 0;
          const clock = new ActiveTime(() => now), seen = [];
          const after = (seconds, act) => { now += 1000 * seconds; act?.call(clock); seen.push(clock.seconds); };
          clock.start();
          after(5, clock.input);    // 5
          after(60);                // 25: nobody was there after 20 s
          after(0, clock.input);    // 25
          after(3, clock.stop);     // 28: the tab is hidden
          after(100, clock.input);  // 28
          after(0, clock.resume);
          after(2, clock.input);    // 30
          clock.start(30);          // the same item after a reload
          after(1);                 // 31
          done(seen);
        });""")
    assert found == [5, 25, 25, 28, 28, 28, 30, 31]


def test_a_diff_is_in_words(desk, large):
    at = desk([piece(0, "how", "ct", large)], {"ann": "reviewer"})
    at.log_in("ann")
    found = at.browser.execute_async_script("""
        const done = arguments[0];
        import("/static/diff.js").then(({ diff }) => done([["a b  c", "a x c d"], ["", "a"], ["a b", ""], ["", ""]].map(
          ([before, after]) => diff(before, after).map(({ kind, text }) => `${kind}:${text}`).join(" "))));""")
    assert found == ["same:a gone:b new:x same:c new:d", "new:a", "gone:a b", ""]


def test_what_is_skipped_comes_back_and_undo_of_it_holds_together(desk, large):
    at = desk([piece(n, "how", "ct", large) for n in range(2)], {"ann": "reviewer"})
    at.log_in("ann")
    assert at.give("s", "1") == "2"
    assert at.give("a") == "1"  # nothing else was left
    assert at.give("u") == "2"
    assert at.give("a") == "1"
    at.press("a")
    at.await_text("#panes", "Nothing is left")
    at.await_text("#left", "2 of 2 done · 0 to read")
    assert at.complaints() == []
