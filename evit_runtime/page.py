"""A page in the browser, for any model: drop a picture, see what is found, download it.

The model computes once for a picture. Its result stays on the server, so that the threshold and the
classes only draw it anew. The page is served on this machine alone, and nothing in it comes from
or goes to another one.
"""

import html
import os
import shutil
import socket
import tempfile
import time
import webbrowser
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from .errors import UserError
from .files import write_json
from .image_files import decode_image
from .model import Model
from .request_limits import limit_requests, only_files, patient_for
from .results import Result
from .version import __version__

__all__ = ['Page', 'coco_document', 'serve']

_HOST = '127.0.0.1'
_LARGEST_UPLOAD = 100 * 2 ** 20  # bytes
_SECONDS = 120.0  # for a picture, and for a request to arrive
_SECONDS_IDLE = 10.0  # of a connection that neither asks for something nor reads what it gets
_WAITING = 64  # requests
_SESSIONS = 8  # whose results are kept
_DRAWINGS = 64  # each move of the threshold makes one
_SECONDS_KEPT = 3600
# What the browser may fetch: nothing from other machines, whatever gradio's own files ask for.
_POLICY = ("default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
           "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
           "connect-src 'self' data: blob:; worker-src 'self' blob:; frame-ancestors 'none'")
_CSS = """
footer {display: none !important}
.said {font-size: var(--text-lg); padding: var(--spacing-sm) 0; min-height: 2.2em}
#picture img {max-height: calc(100vh - 230px); object-fit: contain}
.said.wrong {color: var(--error-text-color, #b91c1c)}
"""


class Page:
    """Page that is served until `close`, or until the ``with`` block ends.

    Attributes:
        address: Where it is.
    """

    def __init__(self, model: Model, *, port: int = 0, score_threshold: float = 0.3,
                 largest_upload: int = _LARGEST_UPLOAD, seconds: float = _SECONDS) -> None:
        """Serve a page.

        Args:
            model: Any model.
            port: Its port on 127.0.0.1; 0 takes any that is free.
            score_threshold: Where the threshold starts.
            largest_upload: Bytes of the largest file that is accepted.
            seconds: Time after which a picture is given up, or a request that has not arrived.

        Raises:
            UserError: If gradio is not installed, or the port is in use.
        """
        if not 0 <= score_threshold <= 1:
            raise UserError(f'--score-thr is from 0 to 1, but got {score_threshold:g}')
        # Read by gradio when it is imported, and later.
        os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'
        try:
            import gradio
        except ImportError as error:
            raise UserError('the page needs gradio, which is not installed: '
                            'pip install "evit-mm[app]"') from error
        self._gradio: Any = gradio
        self._model = model
        self._seconds = seconds
        self._stack = ExitStack()
        self._folder = Path(self._stack.enter_context(
            tempfile.TemporaryDirectory(prefix='evit_page_', ignore_cleanup_errors=True)))
        self._drawn: deque[Path] = deque()
        os.environ['GRADIO_TEMP_DIR'] = str(self._folder)
        # One picture at a time; whoever waits too long is told so.
        self._worker = ThreadPoolExecutor(1)
        self._stack.callback(self._worker.shutdown, wait=False, cancel_futures=True)
        try:
            self.address = self._launch(_free_port(port), score_threshold, largest_upload)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> 'Page':
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop serving, and remove what was uploaded."""
        self._stack.close()

    def _launch(self, port: int, score_threshold: float, largest_upload: int) -> str:
        """Build the page and serve it in a thread; return its address."""
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware

        blocks = self._build(score_threshold)
        blocks.queue(max_size=_WAITING, default_concurrency_limit=2, api_open=False)
        # A page of another site can't reach this one by a name of its own.
        middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=[_HOST, 'localhost']),
                      Middleware(_policy_middleware),
                      Middleware(limit_requests, largest_upload=largest_upload,
                                 seconds=self._seconds, folder=self._folder)]
        try:
            with _untouched_logs():
                _, address, _ = blocks.launch(
                    server_name=_HOST, server_port=port, share=False, quiet=True,
                    prevent_thread_lock=True, max_file_size=largest_upload, footer_links=[],
                    ssr_mode=False, mcp_server=False, pwa=False, enable_monitoring=False,
                    run_history=False, state_session_capacity=_SESSIONS, css=_CSS,
                    theme=self._theme(), app_kwargs={'middleware': middleware})
        except OSError as error:
            raise UserError(f'port {port} can\'t be used: choose another one with --port'
                            ) from error
        self._stack.callback(blocks.close, verbose=False)
        # Uvicorn creates one for each connection; gradio starts it without options.
        settings = blocks.server.config
        settings.http_protocol_class = patient_for(_SECONDS_IDLE,
                                                   settings.http_protocol_class)
        return str(address)

    def _theme(self) -> Any:
        """Return a theme with the fonts of the reader's system; the usual ones come from Google."""
        return self._gradio.themes.Default(font=['system-ui', 'sans-serif'],
                                           font_mono=['ui-monospace', 'monospace'])

    def _build(self, score_threshold: float) -> Any:
        gradio = self._gradio
        has_scores = self._model.task != 'semantic segmentation'
        count = len(self._model.class_names)
        with gradio.Blocks(analytics_enabled=False, title=f'evit-mm: {self._model.task}',
                           delete_cache=(600, _SECONDS_KEPT), fill_width=True) as blocks:
            gradio.HTML(f'<h2>{self._model.task.capitalize()}</h2><p>{count} '
                        f'class{"es" if count != 1 else ""}. Pictures stay on this machine.</p>')
            result = gradio.State(None, time_to_live=_SECONDS_KEPT)
            with gradio.Row():
                with gradio.Column(scale=1, min_width=280):
                    upload = gradio.File(label='Picture', type='filepath',
                                         file_count='single', height=150, elem_id='upload')
                    threshold = gradio.Slider(
                        0, 1, score_threshold, step=0.01, label='Lowest score', buttons=[],
                        visible=has_scores, elem_id='threshold')
                    classes = gradio.CheckboxGroup([], label='Classes', visible=False,
                                                   show_select_all=True, elem_id='classes')
                    with gradio.Row():
                        picture_file = gradio.DownloadButton('Download picture', visible=False,
                                                             elem_id='picture-file')
                        json_file = gradio.DownloadButton('Download JSON', visible=False,
                                                          elem_id='json-file')
                with gradio.Column(scale=3):
                    said = gradio.HTML(_say('Drop a picture to begin.'), elem_id='said')
                    picture = gradio.Image(label='Result', interactive=False, type='filepath',
                                           show_label=False, buttons=['fullscreen'],
                                           alt_text='the picture with what was found',
                                           elem_id='picture', visible=False)
            upload.async_move_resource_to_block_cache = only_files(
                upload.async_move_resource_to_block_cache)
            shown = [said, picture, picture_file, json_file]
            private = dict(api_visibility='private')
            # The upload is emptied, so that the next picture can be dropped there.
            upload.upload(self._predict, [upload, threshold], [upload, result, classes, *shown],
                          show_progress_on=said, **private)
            for event in (threshold.change, classes.input):
                event(self._draw, [result, threshold, classes], shown, show_progress='hidden',
                      trigger_mode='always_last', **private)
        return blocks

    # --- what the page does -------------------------------------------------------------------

    def _predict(self, path: str, threshold: float) -> list[Any]:
        """Return an empty upload, the result of a file, and all that shows it."""
        name = Path(path).name
        try:
            future = self._worker.submit(self._compute, path, name)
            try:
                result: Result = future.result(self._seconds)
            except FutureTimeout:  # another class than the built-in one in Python 3.10
                future.cancel()
                raise UserError(f'{name} took longer than {self._seconds:g} seconds, and was given '
                                'up') from None
        except UserError as error:
            return [None, None, *self._nothing(str(error))]
        except Exception as error:  # a model is any code
            reason = ' '.join(f'{type(error).__name__}: {error}'.split())
            return [None, None, *self._nothing(f'{name} can\'t be predicted: {reason[:300]}')]
        names = set(result.names)
        numbers = [k for k, name in enumerate(result.class_names) if name in names]
        choices = self._gradio.CheckboxGroup(
            choices=[(result.class_names[k], k) for k in numbers], value=numbers,
            visible=bool(numbers))
        return [None, result, choices, *self._draw(result, threshold, numbers)]

    def _compute(self, path: str, name: str) -> Result:
        """Read a file, and let the model predict it."""
        upload = Path(path)
        try:
            content = upload.read_bytes()
            if upload.is_relative_to(self._folder):  # gradio's copy, which nobody needs again
                upload.unlink()
        except OSError as error:
            raise UserError(f'can\'t read {name}: {error.strerror}') from error
        image = decode_image(content, name, max_pixels=self._model.max_pixels)
        # All that the model finds: the threshold comes when it is drawn.
        [result] = self._model(image, score_threshold=0)
        result.source = name
        return result

    def _draw(self, result: Result | None, threshold: float, classes: list[int]) -> list[Any]:
        """Return a sentence, the picture and the files of a result, without the model."""
        if result is None:
            return [self._gradio.skip()] * 4
        few = result.filter(score_threshold=threshold, classes=classes)
        stem = Path(result.source or 'picture').stem[:60]  # some systems count bytes
        try:
            folder = self._new_folder()
            drawn, document = folder / f'{stem}_predicted.jpg', folder / f'{stem}.json'
            few.save(drawn)
            write_json(document, coco_document(few))
        except UserError as error:
            return self._nothing(str(error))[1:]
        download = self._gradio.DownloadButton
        return [_say(_counts(few)), self._gradio.Image(str(drawn), visible=True),
                download(value=str(drawn), visible=True),
                download(value=str(document), visible=True)]

    def _new_folder(self) -> Path:
        """Return a new folder for a drawn result; those of long ago are removed.

        Raises:
            UserError: If it can't be created.
        """
        try:
            folder = Path(tempfile.mkdtemp(dir=self._folder))
        except OSError as error:
            raise UserError(f'can\'t write {self._folder}: {error.strerror}') from error
        self._drawn.append(folder)
        if len(self._drawn) > _DRAWINGS:
            shutil.rmtree(self._drawn.popleft(), ignore_errors=True)
        return folder

    def _nothing(self, mistake: str) -> list[Any]:
        """Return a page that says why there is no result."""
        gradio = self._gradio
        return [gradio.CheckboxGroup(choices=[], value=[], visible=False),
                _say(mistake, wrong=True), gradio.Image(None, visible=False),
                gradio.DownloadButton(visible=False), gradio.DownloadButton(visible=False)]


def serve(model: Model, *, port: int = 7860, score_threshold: float = 0.3,
          browser: bool = True) -> None:
    """Serve the page of a model until Ctrl-C.

    Args:
        model: Any model.
        port: Its port on 127.0.0.1; 0 takes any that is free.
        score_threshold: Where the threshold starts.
        browser: Open the page in the browser.

    Raises:
        UserError: If gradio is not installed, or the port is in use.
    """
    with Page(model, port=port, score_threshold=score_threshold) as page:
        print(f'{page.address} shows the page; Ctrl-C ends it', flush=True)
        if browser:
            webbrowser.open(page.address)
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            print()


def coco_document(result: Result) -> dict[str, Any]:
    """Return the result of one image as a document in COCO's format."""
    height, width = result.shape
    return {'info': {'description': f'evit-mm {__version__}'},
            'images': [{'id': 0, 'file_name': result.source, 'width': width, 'height': height}],
            'categories': [{'id': k, 'name': name} for k, name in enumerate(result.class_names)],
            'annotations': [{'id': k, 'iscrowd': 0, **entry}
                            for k, entry in enumerate(result.to_coco())]}


def _policy_middleware(app: Callable[..., Any]) -> Callable[..., Any]:
    """Return an application that tells the browser to stay on this machine."""
    async def with_policy(scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Any) -> None:
            if message['type'] == 'http.response.start':
                message.setdefault('headers', []).append(
                    (b'content-security-policy', _POLICY.encode()))
            await send(message)

        await app(scope, receive, send_with_policy if scope['type'] == 'http' else send)

    return with_policy


@contextmanager
def _untouched_logs() -> Iterator[None]:
    """Keep uvicorn's configuration of logging from closing the log files of this process.

    It closes every handler that there is, that of a training in the same process among them.
    """
    from uvicorn.config import LOGGING_CONFIG

    usual = dict(LOGGING_CONFIG)
    LOGGING_CONFIG.clear()
    LOGGING_CONFIG.update(version=1, incremental=True)
    try:
        yield
    finally:
        LOGGING_CONFIG.clear()
        LOGGING_CONFIG.update(usual)


def _free_port(port: int) -> int:
    """Return a port of this machine; 0 stands for any that is free.

    Raises:
        UserError: If it is in use, or not a port.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except (OSError, OverflowError) as error:
            raise UserError(f'port {port} can\'t be used: choose another one with --port'
                            ) from error
        return int(probe.getsockname()[1])


def _say(sentence: str, *, wrong: bool = False) -> str:
    kind = 'said wrong' if wrong else 'said'
    return f'<div class="{kind}" role="status">{html.escape(sentence)}</div>'


def _counts(result: Result) -> str:
    """Return what was found in words."""
    names = result.names
    height, width = result.shape
    if not names:
        found = 'no class is shown' if result.boxes is None else 'nothing is above the threshold'
    elif result.boxes is not None:
        found = ', '.join(f'{name} {names.count(name)}' for name in dict.fromkeys(names))
    else:
        found = ', '.join(names)
    return f'{result.source}, {width} × {height} pixels: {found}'
