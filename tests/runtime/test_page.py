"""The page in a headless browser: load, drop, see, move, switch off, download, and mistakes."""

import base64
import json
import logging
import os
import shutil
import socket
import urllib.error
import urllib.request

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from evit_runtime import page as page_module
from evit_runtime.errors import UserError
from evit_runtime.page import Page, coco_document

pytest.importorskip('gradio')
CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))),
                None)
FLAGS = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
         '--disable-background-networking', '--disable-component-update', '--disable-sync']
SAID = '#said .said'


@pytest.fixture
def tab():
    """A tab of a browser, with the addresses that it has asked for, and its errors."""
    api = pytest.importorskip('playwright.sync_api')
    if CHROMIUM is None:
        pytest.skip('needs Chromium')
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        tab = browser.new_page(viewport={'width': 1280, 'height': 800})
        tab.set_default_timeout(120_000)  # of a busy machine
        tab.requests, tab.errors = [], []
        tab.on('request', lambda request: tab.requests.append(request.url))
        tab.on('pageerror', lambda error: tab.errors.append(str(error)))
        tab.on('console', lambda message: message.type == 'error'
               and tab.errors.append(message.text))
        yield tab
        browser.close()


def drop(tab, path):
    """Drop a file on the page, as a mouse does."""
    transfer = tab.evaluate_handle('''([content, name]) => {
        const bytes = Uint8Array.from(atob(content), letter => letter.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], name));
        return transfer;
    }''', [base64.b64encode(path.read_bytes()).decode(), path.name])
    tab.dispatch_event('#upload button', 'drop', {'dataTransfer': transfer})


def wait_for(tab, text):
    tab.wait_for_function('([place, text]) => document.querySelector(place)?.innerText'
                          '.includes(text)', arg=[SAID, text])


def download(tab, button, folder):
    with tab.expect_download() as waiting:
        tab.click(button)
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def test_objects(tab, mask_spots, two_spots, tmp_path):
    cv2.imwrite(str(tmp_path / 'two spots.png'), two_spots)
    mask_spots.class_names = ('red', '<i>blue')
    with Page(mask_spots, score_threshold=0.3) as page:
        tab.goto(page.address)
        wait_for(tab, 'Drop a picture to begin.')
        assert tab.inner_text('h2') == 'Instance segmentation'
        drop(tab, tmp_path / 'two spots.png')
        wait_for(tab, 'two spots.png, 90 × 60 pixels: red 1, <i>blue 1')
        first = tab.wait_for_selector('#picture img').get_attribute('src')

        tab.fill('#threshold input[type=number]', '0.05')
        tab.press('#threshold input[type=number]', 'Enter')
        wait_for(tab, 'red 2, <i>blue 1')
        tab.focus('#threshold input[type=range]')
        for _ in range(60):
            tab.keyboard.press('ArrowRight')
        wait_for(tab, 'pixels: red 1')
        tab.fill('#threshold input[type=number]', '0.05')
        tab.press('#threshold input[type=number]', 'Enter')
        wait_for(tab, 'red 2, <i>blue 1')
        tab.click('#classes label:has-text("red")')
        wait_for(tab, 'pixels: <i>blue 1')
        assert tab.wait_for_selector('#picture img').get_attribute('src') != first
        assert len(mask_spots.shapes) == 1  # of all that, the model has seen the picture alone

        table = download(tab, '#json-file', tmp_path)
        assert table.name == 'two spots.json'
        [entry] = COCO(table).dataset['annotations']
        assert entry['bbox'] == [50, 30, 12, 20] and 'counts' in entry['segmentation']
        picture = cv2.imread(str(download(tab, '#picture-file', tmp_path)))
        assert picture.shape == (341, 512, 3)
        blue = picture[40 * 512 // 90, 56 * 512 // 90]
        assert blue[0] > 200 and blue[2] < 60

        # The next one, where the first was dropped.
        cv2.imwrite(str(tmp_path / 'black.png'), np.zeros((20, 30, 3), np.uint8))
        drop(tab, tmp_path / 'black.png')
        wait_for(tab, 'black.png, 30 × 20 pixels: nothing is above the threshold')
        folder = page._folder
        assert any(folder.rglob('*.json')) and not any(folder.rglob('*.png'))
    assert not folder.exists()
    assert not tab.errors
    assert {url for url in tab.requests if not url.startswith(
        (page.address, 'data:', 'blob:'))} == set()


def test_label_maps_and_mistakes(tab, halves, two_spots, tmp_path, monkeypatch):
    cv2.imwrite(str(tmp_path / 'a.png'), two_spots)
    (tmp_path / 'text.jpg').write_text('no picture')
    Image.new('1', (20_000, 20_000)).save(tmp_path / 'huge.png')
    (tmp_path / 'large.bmp').write_bytes(bytes(600_000))
    with Page(halves, largest_upload=500_000, seconds=1) as page:
        tab.goto(page.address)
        wait_for(tab, 'Drop a picture to begin.')
        assert not tab.is_visible('#threshold') and not tab.is_visible('#json-file')
        drop(tab, tmp_path / 'a.png')
        wait_for(tab, 'a.png, 90 × 60 pixels: dark, bright')
        tab.wait_for_selector('#json-file')
        tab.click('#classes label:has-text("dark")')
        wait_for(tab, 'pixels: bright')
        [entry] = json.loads(download(tab, '#json-file', tmp_path).read_text())['annotations']
        assert entry['category_id'] == 1 and entry['area'] == 288

        drop(tab, tmp_path / 'text.jpg')
        wait_for(tab, 'can\'t read the image text.jpg: it is not an image')
        tab.wait_for_selector('#picture img', state='hidden')
        tab.wait_for_selector('#json-file', state='hidden')
        drop(tab, tmp_path / 'huge.png')
        wait_for(tab, 'huge.png has 20000x20000 pixels, more than the limit of 100 megapixels')
        drop(tab, tmp_path / 'large.bmp')
        tab.wait_for_function('document.body.innerText.includes("exceed the maximum allowed size")')

        predict = halves._predict

        def slow(images, threshold):
            import time

            time.sleep(2)
            return predict(images, threshold)

        tab.goto(page.address)
        monkeypatch.setattr(halves, '_predict', slow)
        drop(tab, tmp_path / 'a.png')
        wait_for(tab, 'a.png took longer than 1 seconds, and was given up')

        def broken(images, threshold):
            raise RuntimeError('out of\nmemory')

        monkeypatch.setattr(halves, '_predict', broken)
        drop(tab, tmp_path / 'a.png')
        wait_for(tab, 'a.png can\'t be predicted: RuntimeError: out of memory')


def test_what_the_server_answers(halves, tmp_path, monkeypatch):
    (tmp_path / 'secret.txt').write_text('secret')
    monkeypatch.chdir(tmp_path)
    with Page(halves) as page:
        for path in ('secret.txt', tmp_path / 'secret.txt', '/etc/passwd'):
            with pytest.raises(urllib.error.HTTPError, match='403'):
                urllib.request.urlopen(f'{page.address}gradio_api/file={path}')
        assert page.address.startswith('http://127.0.0.1:')
        with urllib.request.urlopen(page.address) as answer:
            assert "default-src 'self'" in answer.headers['Content-Security-Policy']
            text = answer.read().decode()
        assert 'fonts.googleapis' not in text and 'cdnjs' not in text
        # A name that another site has given to this address.
        request = urllib.request.Request(page.address, headers={'Host': 'example.org'})
        with pytest.raises(urllib.error.HTTPError, match='400'):
            urllib.request.urlopen(request)
        with pytest.raises(UserError, match='port .* be used: choose another one with --port'):
            Page(halves, port=int(page.address.split(':')[2].strip('/')))
    assert os.environ['GRADIO_ANALYTICS_ENABLED'] == 'False'


def test_the_log_of_a_training_in_the_same_process_stays_open(halves, tmp_path):
    handler = logging.FileHandler(tmp_path / 'training.log', 'w')
    try:
        with Page(halves) as page:
            assert urllib.request.urlopen(page.address).status == 200
        assert handler.stream is not None
    finally:
        handler.close()


@pytest.mark.parametrize('options, message', [
    (dict(port=70_000), 'port 70000 can.t be used'),
    (dict(score_threshold=3), '--score-thr is from 0 to 1, but got 3')])
def test_mistakes(options, message, halves):
    with pytest.raises(UserError, match=message):
        Page(halves, **options)


def test_drawings_of_long_ago_are_removed(spots, two_spots, monkeypatch):
    monkeypatch.setattr(page_module, '_DRAWINGS', 3)
    [result] = spots(two_spots)
    result.source = 'n' * 250 + '.png'
    with Page(spots) as page:
        for _ in range(5):
            said, *_ = page._draw(result, 0.3, [0, 1])
        assert 'red 1, blue 1' in said
        assert len(list(page._folder.rglob('*.jpg'))) == 3


def test_a_port_in_use(halves):
    with socket.socket() as other:
        other.bind(('127.0.0.1', 0))
        other.listen()
        with pytest.raises(UserError, match="can't be used"):
            Page(halves, port=other.getsockname()[1])


def test_the_document(spots, two_spots):
    [result] = spots(two_spots)
    result.source = 'a.png'
    document = coco_document(result)
    assert document['images'] == [{'id': 0, 'file_name': 'a.png', 'width': 90, 'height': 60}]
    assert [entry['id'] for entry in document['annotations']] == [0, 1]
    assert document['categories'][1] == {'id': 1, 'name': 'blue'}
