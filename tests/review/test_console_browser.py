"""The console in a real Chromium: reading by keyboard alone, and what the page does with what it is given."""

import json
import subprocess
import sys

import pytest
from reading_desk import PATIENCE, Desk
from reading_room import KINDS, MODALITIES, piece, thorax
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
CONTRAST = """
    const luminance = (rgb) => rgb.map((value) => value / 255)
      .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
      .reduce((sum, value, n) => sum + value * [0.2126, 0.7152, 0.0722][n], 0);
    const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const over = (front, back) => [0, 1, 2].map((n) => front[n] * (front[3] ?? 1) + back[n] * (1 - (front[3] ?? 1)));
    const behind = (element) => {
      if (!element) return [0, 0, 0];
      const own = parts(getComputedStyle(element).backgroundColor);
      return (own[3] ?? 1) === 1 ? own : over(own, behind(element.parentElement));
    };
    const poor = [];
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
      const element = texts.currentNode.parentElement;
      if (!texts.currentNode.data.trim() || !element.checkVisibility() || element.closest("button:disabled")) continue;
      const back = behind(element), front = over(parts(getComputedStyle(element).color), back);
      const [low, high] = [luminance(front), luminance(back)].sort((a, b) => a - b);
      if ((high + 0.05) / (low + 0.05) < 4.5) poor.push(`${texts.currentNode.data.trim()}: ${front} on ${back}`);
    }
    return poor;"""
"""Texts whose contrast with what is behind them is less than 4.5 (WCAG 2.2, 1.4.3)."""
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


SIZES = ((1280, 720), (1024, 768), (768, 1024))
FINDABLE = "button, input, textarea, a, canvas, img, progress"


def check(at: Desk, width: int, height: int) -> None:
    """What must hold of every page, at every moment: names, sizes, contrast, and nothing beyond the edge."""
    dialogs = at.browser.find_elements(By.CSS_SELECTOR, "dialog[open]")  # what is behind one cannot be reached
    for control in (dialogs or [at.browser])[0].find_elements(By.CSS_SELECTOR, FINDABLE):
        if not control.is_displayed():
            continue
        assert control.accessible_name, control.get_attribute("outerHTML")
        if control.tag_name in ("button", "a"):
            assert control.size["height"] >= SMALLEST and control.size["width"] >= SMALLEST, control.text
    assert at.browser.execute_script(CONTRAST) == []
    assert at.browser.execute_script("return document.documentElement.scrollWidth") <= width
    for selector in ("#accept", "#undo", "#status", "#question"):
        for found in at.browser.find_elements(By.CSS_SELECTOR, selector):
            if found.is_displayed():
                box = found.rect
                assert box["y"] + box["height"] <= height and box["x"] + box["width"] <= width, selector


@pytest.mark.parametrize("width, height", SIZES)
def test_every_page_at_every_size(desk, large, artefacts, tmp_path, width, height):
    """The screenshots are for eyes; what a program can see of them is checked."""
    real = large | {"ct-severe": thorax(tmp_path)}
    pieces = [piece(0, "yes_no", "fundus", large), piece(1, "description", "ct", real),
              piece(2, "comparison", "mri", large)]  # fmt: skip
    at = desk(pieces, {"ann": "reviewer"})

    def look(name: str) -> None:
        at.browser.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0], 100))")
        at.browser.save_screenshot(artefacts / f"{name}-{width}x{height}.png")
        check(at, width, height)

    at.size(width, height)
    at.browser.delete_all_cookies()
    at.browser.get(f"{at.address}/login")
    look("1-login")
    at.log_in("ann")
    at.await_text("#left", "0 of 3 done")
    look("2-item")
    at.press("r")
    look("3-reject")
    at.press(Keys.ESCAPE)
    at.press("?")
    look("4-keys")
    at.press(Keys.ESCAPE)
    assert at.give("a") == "2"
    at.press("2")
    look("5-ct-lung")
    at.press("e")
    at.press("4")
    at.press("s")
    look("6-edit")
    assert at.give(Keys.ENTER) == "3"
    look("7-pair")
    at.press("a")
    at.await_text("#left", "3 of 3 done")
    look("8-finished")
    at.browser.get(f"{at.address}/stats")
    look("9-statistics")
    assert at.complaints() == []


def test_tab_reaches_every_control_in_the_order_of_the_page(desk, large):
    at = desk(every_kind(large, 2), {"ann": "reviewer"})
    at.size(1280, 720)
    at.log_in("ann")
    reached = []
    for _ in range(30):
        at.press(Keys.TAB)
        found = at.browser.execute_script("return document.activeElement.id || document.activeElement.textContent.trim()")
        if found in reached:
            break
        reached.append(found)
    start = reached.index("Statistics")
    assert [name for name in reached[start:] + reached[:start] if len(name) < 20] == [
        "Statistics", "keys", "leave", "closer", "farther", "reset", "invert", "windowing",
        "scroll", "accept", "edit", "reject", "skip", "flag", "undo",
    ]  # fmt: skip


def view(at: Desk) -> str:
    at.browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    return at.text("#view")


def mean(at: Desk) -> float:
    """Of what is drawn, alpha included."""
    return at.browser.execute_script("""
        const canvas = document.querySelector("#panes canvas");
        const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        return pixels.reduce((sum, value) => sum + value, 0) / pixels.length;""")


def drag(at: Desk, x: int, y: int, *, right: bool = False, shift: bool = False) -> None:
    chain = ActionChains(at.browser).move_to_element(at.browser.find_element(By.TAG_NAME, "canvas"))
    if right:
        chain.w3c_actions.pointer_action.pointer_down(button=MouseButton.RIGHT)
        chain.w3c_actions.pointer_action.move_by(x, y).pointer_up(button=MouseButton.RIGHT)
    elif shift:
        chain.key_down(Keys.SHIFT).click_and_hold().move_by_offset(x, y).release().key_up(Keys.SHIFT)
    else:
        chain.click_and_hold().move_by_offset(x, y).release()
    chain.perform()


def test_the_view_changes_and_is_reset(desk, large):
    at = desk([piece(n, "how", "ct", large) for n in range(2)], {"ann": "reviewer"})
    at.size(1280, 720)
    at.log_in("ann")
    fitted, grey = view(at), mean(at)
    assert "level 128, window 255 · as the model saw it" in fitted
    assert not at.browser.find_element(By.ID, "presets").is_displayed()  # 8 bits are no Hounsfield units
    at.press("i")
    assert "inverted" in view(at) and mean(at) > grey
    at.press("0")
    assert view(at) == fitted and mean(at) == grey
    at.press(Keys.SHIFT, Keys.ARROW_UP)
    assert "level 138" in view(at) and "model" not in view(at)
    at.press("0")
    drag(at, 40, -20, shift=True)
    assert "level 138, window 295" in view(at)
    drag(at, -40, 20, right=True)
    assert view(at) == fitted and mean(at) == grey
    drag(at, 300, 0)
    assert view(at) == fitted and mean(at) < grey  # half of it is outside
    canvas = at.browser.find_element(By.TAG_NAME, "canvas")
    ActionChains(at.browser).double_click(canvas).perform()
    assert view(at) == fitted and mean(at) == grey
    ActionChains(at.browser).scroll_from_origin(ScrollOrigin.from_element(canvas), 0, -100).perform()
    assert int(view(at).split(" %")[0]) > int(fitted.split(" %")[0])
    at.press("0")
    at.press("+")
    assert int(view(at).split(" %")[0]) == pytest.approx(1.25 * int(fitted.split(" %")[0]), rel=0.02)


def test_windows_of_a_ct_are_of_all_its_bits(desk, large, tmp_path):
    path = thorax(tmp_path)
    at = desk([piece(n, "how", "ct", large | {"ct-severe": path}) for n in range(2)], {"ann": "reviewer"})
    at.size(1280, 720)
    at.log_in("ann")
    pixel = """
        const canvas = document.querySelector("#panes canvas");
        const box = canvas.getBoundingClientRect(), side = Math.min(box.width, box.height);
        const [x, y] = [...arguments].map((at, n) => Math.round([box.width, box.height][n] / 2 + at * side / 2));
        return canvas.getContext("2d").getImageData(x - 4, y - 4, 9, 9).data.filter((_, n) => n % 4 === 0)
          .reduce((sum, value) => sum + value, 0) / 81;"""

    def lung() -> float:
        return at.browser.execute_script(pixel, 0.4, 0.1)

    seen = view(at)
    assert "level 40, window 400 HU · as the model saw it" in seen
    assert lung() == 0  # black in the 8 bits, whatever one does with them
    at.press("2")
    assert "level −600, window 1500 HU" in view(at)
    assert lung() == pytest.approx(255 * ((-850 + 600) / 1500 + 0.5), abs=3)
    at.press("i")
    assert "inverted" in view(at) and lung() == pytest.approx(255 * (0.5 - (-850 + 600) / 1500), abs=3)
    at.press("i")
    for key, words in (("1", "level 40, window 80"), ("3", "level 400, window 1800"), ("4", "level 40, window 400"),
                       ("5", "level 50, window 350")):  # fmt: skip
        at.press(key)
        assert words in view(at)
    at.press("0")
    assert view(at) == seen
    drag(at, 0, 255, right=True)  # half a 255th of 400 for each pixel
    assert "level −160, window 400 HU" in view(at)
    ActionChains(at.browser).move_to_element_with_offset(
        at.browser.find_element(By.TAG_NAME, "canvas"), 100, 20).perform()  # fmt: skip
    assert at.text("#point").endswith("HU") and int(at.text("#point").split()[0].replace("−", "-")) < -700
    facts = at.text("#facts")
    assert "512 × 512 pixels, 12 bits, 0.7 × 0.7 mm" in facts and "synthetic (licence: CC0-1.0)" in facts
    assert str(tmp_path) not in at.browser.page_source


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


def test_a_colleague_is_asked_by_name(desk, large):
    at = desk([piece(n, "how", "ct", large) for n in range(3)], {"ann": "reviewer", "ben": "reviewer", "lea": "lead"})
    at.log_in("ann")
    at.press("f")
    whom = at.browser.find_element(By.CSS_SELECTOR, "select[aria-label='Whose opinion']")
    WebDriverWait(at.browser, PATIENCE).until(lambda _: len(whom.find_elements(By.TAG_NAME, "option")) == 3)
    at.press("c", "lea")
    assert whom.get_attribute("value") == "lea"
    at.browser.find_element(By.CSS_SELECTOR, "#sheet button.row").click()
    assert at.await_item("1") == "2"
    store = Store(at.store)
    with store.reading() as transaction:
        (event,) = transaction.events()
        assert (event["action"], event["colleague"]) == ("flag", "lea")
    store.close()
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
