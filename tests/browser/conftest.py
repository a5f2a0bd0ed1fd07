"""A headless Chromium without a network, and pages of synthetic sweeps opened in it from disk."""

import json
import shutil
from pathlib import Path

import pytest

from keepfrac.reporting.build import of_sweep
from keepfrac.reporting.page.html import write_page
from tests.browser import sweeps

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --force-prefers-reduced-motion"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    absent = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)
            if absent:
                reason = f"no {' and no '.join(absent)} here (Debian: apt-get install chromium chromium-driver)"
                item.add_marker(pytest.mark.skip(reason=reason))


CENTRE = """
const marks = arguments[0].querySelectorAll(`.scatterlayer .trace:nth-child(${arguments[1]}) .points path`);
const box = marks[arguments[2]].getBoundingClientRect();
return [box.x + box.width / 2, box.y + box.height / 2];
"""


class Page:
    """A page in the browser and what a reader does with it."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, path: Path, width: int = 1280, height: int = 900) -> "Page":
        """Opens a file at a screen's width and waits until its pictures stand."""
        self.driver.get("about:blank")
        self.log("browser"), self.log("performance")  # of the page before
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        self.driver.get(path.as_uri())
        state = self.soon(lambda: self.js("return document.documentElement.dataset.state"), seconds=90)
        assert state == "ready", self.log("browser")
        return self

    def js(self, code: str, *arguments):
        return self.driver.execute_script(code, *arguments)

    def soon(self, look, seconds: float = 20):
        """Returns what `look()` returns, once that is true."""
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, seconds).until(lambda _: look())

    def all(self, selector: str) -> list:
        return self.driver.find_elements("css selector", selector)

    def one(self, selector: str):
        return self.driver.find_element("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        return self.js("return [...document.querySelectorAll(arguments[0])].map((one) => one.textContent)", selector)

    def log(self, kind: str) -> list:
        return self.driver.get_log(kind)

    def requested(self) -> set[str]:
        """The schemes of all addresses that were asked for since the page was opened."""
        messages = [json.loads(entry["message"])["message"] for entry in self.log("performance")]
        asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return {address.partition(":")[0] for address in asked}

    def press(self, *keys: str) -> None:
        """Types at what has the focus."""
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def point_at(self, plot: int, trace: int, point: int, click: bool = True) -> None:
        """Moves the mouse to the middle of a marker of a front, and clicks."""
        from selenium.webdriver.common.action_chains import ActionChains

        box = self.all("#panels .plot")[plot]
        self.js("arguments[0].scrollIntoView({block: 'center'})", box)
        x, y = map(round, self.js(CENTRE, box, trace, point))
        actions = ActionChains(self.driver)
        pointer = actions.w3c_actions.pointer_action
        pointer.move_to_location(x, y + 3)
        pointer.move_to_location(x, y)
        actions.pause(0.2)  # plotly looks for what lies under the pointer a little later
        if click:
            pointer.click()
        actions.perform()

    def focus(self) -> str:
        return self.js("return document.activeElement.textContent || document.activeElement.value")


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    driver.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    yield driver
    driver.quit()


@pytest.fixture
def page(driver) -> Page:
    return Page(driver)


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory):
    """`written("large")` is the page of a synthetic sweep, made once."""
    made: dict[str, Path] = {}

    def write(name: str) -> Path:
        if name not in made:
            folder = getattr(sweeps, name)(tmp_path_factory.mktemp("sweeps") / name)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("SWEEP_API_KEY", sweeps.SECRET)
                made[name] = write_page(of_sweep(folder), folder, folder / "report.html")
        return made[name]

    return write
