"""The page in a real browser where there is one, and through its API anywhere."""

import gc
import shutil
import time
from collections.abc import Iterator

import pytest
from PIL import Image

gr = pytest.importorskip("gradio")
gradio_client = pytest.importorskip("gradio_client")

from tiny_models import CLASS_NAMES  # noqa: E402
from transformers_upv2.app import COLUMNS, LOOPBACK, build_app, serve  # noqa: E402

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # those of web libraries, at every start of a server
]


@pytest.fixture(scope="module")
def page(model_folder, image_folder) -> Iterator[gr.Blocks]:
    blocks = build_app(model_folder, image_folder)
    blocks.launch(prevent_thread_lock=True, quiet=True, ssr_mode=False)
    yield blocks
    blocks.close()
    gc.collect()  # the server's sockets and event loop, which gradio leaves to the collector


@pytest.fixture
def photo(image_folder):
    return image_folder / "2.png"


def test_it_listens_on_loopback_unless_told_otherwise(page, model_folder, monkeypatch):
    assert page.local_url.startswith(f"http://{LOOPBACK}:")
    launched = []
    monkeypatch.setattr(gr.Blocks, "launch", lambda _, **options: launched.append(options))
    serve(model_folder)
    serve(model_folder, host="0.0.0.0", port=80)
    assert [options["server_name"] for options in launched] == [LOOPBACK, "0.0.0.0"]
    assert not any(options["share"] for options in launched)


@pytest.fixture
def client(page, monkeypatch):
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    client = gradio_client.Client(page.local_url, verbose=False)
    yield client
    client.close()


def test_questions_through_the_api(client, photo):
    client.predict(gradio_client.handle_file(str(photo)), api_name="/perceive")
    picture, found = client.predict(", ".join(CLASS_NAMES), 0.0, api_name="/detect")
    assert found["headers"] == COLUMNS
    assert {row[0] for row in found["data"]} <= set(CLASS_NAMES)
    assert len(found["data"]) > 0
    path = picture if isinstance(picture, str) else picture["path"]
    with Image.open(path) as drawn:
        assert drawn.width / drawn.height == pytest.approx(60 / 80, abs=0.02)
    _, other = client.predict("hat", 0.0, api_name="/detect")
    assert {row[0] for row in other["data"]} == {"hat"}
    assert client.predict("two small", api_name="/caption").startswith("two small")
    gallery = client.predict("a red circle", api_name="/search")
    assert len(gallery) == 3
    similar = client.predict(api_name="/search_similar")
    assert similar[0]["caption"].startswith("1.00")
    assert similar[0]["caption"].endswith("2.png")


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    executable = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if executable is None:
        pytest.skip(f"needs a browser, one of {BROWSERS}")
    with playwright.sync_playwright() as driver:
        window = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield window
        window.close()


def test_questions_in_a_browser(page, photo, browser):
    tab = browser.new_page()
    tab.set_default_timeout(60_000)
    errors = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    # the page must need nothing from elsewhere
    tab.route(lambda url: LOOPBACK not in url, lambda route: route.abort())
    tab.goto(page.local_url, wait_until="domcontentloaded")
    tab.locator("#threshold input[type=number]").fill("0")
    tab.locator("#labels textarea").fill("hat")
    tab.locator("#image input[type=file]").set_input_files(str(photo))
    tab.locator("#picture img").wait_for()
    tab.locator("#found", has_text="hat").wait_for()
    before = tab.locator("#picture img").get_attribute("src")
    tab.locator("#labels textarea").fill("red circle")
    tab.locator("#found", has_text="red circle").wait_for()
    assert "hat" not in tab.locator("#found").inner_text()
    deadline = time.monotonic() + 60
    while tab.locator("#picture img").get_attribute("src") == before:
        assert time.monotonic() < deadline, "the picture did not change with the labels"
        time.sleep(0.2)
    tab.locator("#beginning textarea, #beginning input").first.fill("two small")
    tab.locator("#write").click()
    tab.wait_for_function("document.querySelector('#caption textarea, #caption input')?.value.startsWith('two small')")
    tab.locator("#query textarea, #query input").first.fill("a red circle")
    tab.locator("#query textarea, #query input").first.press("Enter")
    tab.locator("#gallery img").first.wait_for()
    assert errors == []
    tab.close()
