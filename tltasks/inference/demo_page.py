"""The page of `tltasks demo`, in Gradio. Everything that it loads comes from the server that shows it."""

from __future__ import annotations

import html
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import gradio
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tltasks.config.tasks import TASKS
from tltasks.config.tasks.spec import Input
from tltasks.errors import RecipeError, TltasksError
from tltasks.inference.demo import Demo, Respondent, sentence
from tltasks.inference.prediction_writer import Answer

CSS = """
.said { padding: 0.75rem 1rem; border-radius: 0.5rem; background: #fef2f2; color: #991b1b; }
.dark .said { background: #450a0a; color: #fecaca; }
.pieces table { width: 100%; border-collapse: collapse; }
.pieces td, .pieces th { padding: 0.3rem 0.6rem; text-align: left; vertical-align: top; overflow-wrap: anywhere; }
.pieces td:first-child { white-space: nowrap; font-variant-numeric: tabular-nums; }
.card table { display: block; overflow-x: auto; max-width: 100%; border: none; }
.card td, .card th { word-break: normal; overflow-wrap: normal; }
"""
POLICY = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'"
"""No page, whatever a card holds, makes a browser fetch from elsewhere."""

Updates = list[Any]


class _Inward:
    """Adds the policy to every answer of the server."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Content-Security-Policy"] = POLICY
            await send(message)

        await self.app(scope, receive, send_with_policy)


# ------------------------------------------------------------------------------------------------ parts


def _ask_picture(wording: Input) -> Any:
    picture = gradio.Image(type="filepath", image_mode=None, label=wording.label, height=320, buttons=["fullscreen"])
    # Its own would decode the file, and fail without a word to the visitor where it is none. A class of one's own would
    # make Gradio write a file beside this one (gradio 6.31, component_meta.py, create_or_modify_pyi).
    picture.preprocess = _path
    return picture


def _path(payload: Any) -> str | None:
    """Where Gradio keeps a file as it was dropped."""
    return payload and str(payload.path)


def _ask_recording(wording: Input) -> Any:
    return gradio.Audio(type="filepath", label=wording.label, buttons=[])


def _ask_text(wording: Input) -> Any:
    return gradio.Textbox(label=wording.label, lines=10, max_lines=24, placeholder=wording.placeholder)


FIELDS: dict[str, Callable[[Input], Any]] = {"image": _ask_picture, "audio": _ask_recording, "text": _ask_text}
"""By the kind of input that a task is given."""


@dataclass(frozen=True)
class _View:
    """A part of an answer: how it is laid out, and what is put there."""

    make: Callable[[], Any]
    value: Callable[[Answer], Any]


def _pieces(answer: Answer) -> str:
    rows = [
        f"<tr><td>{_clock(p['start'])} – {_clock(p['end'])}</td><td>{_plain(p['text'])}</td></tr>"
        for p in answer["pieces"]
    ]
    return f"<div class='pieces'><table><tr><th>Time</th><th>Text</th></tr>{''.join(rows)}</table></div>"


def _loop(answer: Answer) -> str | None:
    return "Decoding went round in circles, so this text is not to be trusted." if answer["looped"] else None


VIEWS: dict[str, _View] = {
    "top": _View(
        lambda: gradio.Label(label="Probabilities"),
        lambda answer: {each["label"]: each["probability"] for each in answer["top"]},
    ),
    "prediction": _View(
        lambda: gradio.Textbox(label="Answer", lines=6, max_lines=20, interactive=False, buttons=["copy"]),
        lambda answer: answer["prediction"],
    ),
    "looped": _View(lambda: gradio.Markdown(visible=False), _loop),
    "pieces": _View(lambda: gradio.HTML(), _pieces),
}
"""By the columns of an answer, in the order of the page."""


def _shown_columns(answers: datasets.Features) -> list[str]:
    return [name for name in VIEWS if name in answers and not (name == "prediction" and "top" in answers)]


class _Panel:
    """Where one model's answer stands, or the sentence that says why there is none."""

    def __init__(self, columns: Sequence[str], heading: str, css_class: str) -> None:
        self.views = [VIEWS[name] for name in columns]
        gradio.Markdown(f"**{heading}**")
        self.said = gradio.HTML(visible=False, elem_classes=[f"{css_class}-said"])
        self.parts = [view.make() for view in self.views]
        for part, name in zip(self.parts, columns, strict=True):
            part.elem_classes = [f"{css_class}-{name}"]

    @property
    def components(self) -> list[Any]:
        return [self.said, *self.parts]

    def updates(self, answer: Answer | None, said: str | None = None) -> Updates:
        found: Updates = [gradio.update(value=said and f"<div class='said'>{_plain(said)}</div>", visible=bool(said))]
        for view, part in zip(self.views, self.parts, strict=True):
            value = view.value(answer) if answer else None
            hides = isinstance(part, gradio.Markdown)
            found.append(gradio.update(value=value, visible=bool(value)) if hides else gradio.update(value=value))
        return found

    def ask(self, respondent: Callable[[], Respondent], value: str) -> Updates:
        try:
            answer = respondent().answer(value)
            return self.updates(answer, None if answer["prediction"] else "The model had nothing to say to this.")
        except TltasksError as error:
            return self.updates(None, sentence(error))


# ------------------------------------------------------------------------------------------------- page


def build(demo: Demo, examples: list[str]) -> Any:
    """The page, not yet served."""
    task = demo.trained.task
    given, columns = TASKS[task.tag].input, _shown_columns(task.output_features)
    with gradio.Blocks(title=demo.title, analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gradio.Markdown(f"# {demo.title}\n\n{demo.summary()}")
        with gradio.Tab("Try it"):
            _lay_out_trial(demo, given, columns, examples)
        with gradio.Tab("About the model"):
            quality, card = demo.quality(), demo.card()
            if quality:
                gradio.Markdown(f"## Measured quality\n\n{quality}\n\n---", elem_classes=["card"])
            gradio.Markdown(card or "This model came without the results of a run.", elem_classes=["card"])
    return page


def _lay_out_trial(demo: Demo, given: Input, columns: list[str], examples: list[str]) -> None:
    with gradio.Row():
        with gradio.Column(min_width=300):
            entry = FIELDS[given.kind](given)
            entry.elem_classes = ["entry"]
            button = gradio.Button("Answer", variant="primary") if given.kind == "text" else None
            both = gradio.Checkbox(
                label=f"Compare with the untouched checkpoint ({demo.origin})", visible=demo.origin is not None
            )
        with gradio.Column(min_width=300):
            own = _Panel(columns, "This model", "own")
        with gradio.Column(min_width=300, visible=False) as side:
            other = _Panel(columns, f"Untouched checkpoint ({demo.origin})", "other")
    if examples:
        gradio.Examples([[each] for each in examples], entry, cache_examples=False, label="From the test set")

    def answer(value: str | None, compared: bool) -> Updates:
        if value is None or not value.strip():
            said = "Enter a text first." if given.kind == "text" else None
            return [gradio.update(visible=compared), *own.updates(None, said), *other.updates(None)]
        theirs = other.ask(lambda: demo.untouched, value) if compared else other.updates(None)
        return [gradio.update(visible=compared), *own.ask(lambda: demo.model, value), *theirs]

    gradio.on(
        [button.click if button else entry.change, both.change],
        answer,
        inputs=[entry, both],
        outputs=[side, *own.components, *other.components],
        api_name="answer",
        concurrency_limit=1,  # one model, and one input at a time
        trigger_mode="always_last",
    )


def _plain(text: str) -> str:
    """A text as HTML; Gradio's own placeholders, `${…}` and `{{…}}`, have no meaning in it either."""
    return html.escape(text).replace("$", "&#36;").replace("{", "&#123;")


def _clock(seconds: float) -> str:
    """
    >>> _clock(4.256), _clock(83.5)
    ('0:04.26', '1:23.50')
    """
    hundredths = round(seconds * 100)
    return f"{hundredths // 6000}:{hundredths % 6000 / 100:05.2f}"


# ------------------------------------------------------------------------------------------------ server


@dataclass(frozen=True)
class Served:
    """A page that can be visited."""

    page: Any
    url: str

    def close(self) -> None:
        self.page.close(verbose=False)


def launch(demo: Demo, *, host: str | None, port: int | None) -> Served:
    """Serve the page in threads of this process; on loopback unless told otherwise."""
    with tempfile.TemporaryDirectory(prefix="tltasks-") as folder:  # Gradio copies what it shows
        page = build(demo, demo.examples(Path(folder)))
        try:
            _, url, _ = page.launch(
                server_name=host,
                server_port=port,
                share=False,
                quiet=True,
                prevent_thread_lock=True,
                footer_links=[],
                run_history=False,
                ssr_mode=False,
                pwa=False,
                theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
                css=CSS,
                app_kwargs={"middleware": [Middleware(_Inward)]},
            )
        except OSError as error:
            raise RecipeError(f"demo: cannot serve there ({error}); name another --port or --host.") from error
    return Served(page, url)


def wait() -> None:
    """Until Ctrl-C."""
    threading.Event().wait()
