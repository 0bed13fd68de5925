"""Page of `tltasks demo`, in Gradio. Everything that it loads comes from the server that shows it."""

from __future__ import annotations

import html
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import gradio
from starlette.middleware import Middleware

from tltasks.config.tasks import TASKS, Input
from tltasks.errors import DataError, RecipeError, TltasksError
from tltasks.inference.demo import Demo, sentence
from tltasks.inference.demo_server import DEFAULT_LIMITS, Gate, Limits, Uploads, is_below, lifespan
from tltasks.inference.predictor import Output

CSS = """
.problem p { padding: 0.75rem 1rem; border-radius: 0.5rem; background: #fef2f2; color: #991b1b; }
.dark .problem p { background: #450a0a; color: #fecaca; }
.segments table { width: 100%; border-collapse: collapse; }
.segments :is(table, td, th) { border-color: var(--border-color-primary) !important; }
.segments td, .segments th { padding: 0.3rem 0.6rem; text-align: left; vertical-align: top; overflow-wrap: anywhere; }
.segments td:first-child { white-space: nowrap; font-variant-numeric: tabular-nums; }
.card table { display: block; overflow-x: auto; max-width: 100%; border: none; }
.card td, .card th { border-color: var(--border-color-primary) !important; word-break: normal; overflow-wrap: normal; }
.card td, .card th { min-width: 6rem; }
"""


# ------------------------------------------------------------------------------------------------ parts


def _input_field(given: Input) -> gradio.components.Component:
    """Field for the kind of input that a task is given."""
    if given.kind == "text":
        return gradio.Textbox(label=given.label, lines=10, max_lines=24, placeholder=given.placeholder)
    if given.kind == "audio":
        field = gradio.Audio(type="filepath", label=given.label, buttons=[])
    else:
        field = gradio.Image(type="filepath", image_mode=None, label=given.label, height=320, buttons=["fullscreen"])
    # Its own would decode a picture, and fail without a word to the visitor where it is none. A class of one's own
    # would make Gradio write a file beside this one (gradio 6.31, component_meta.py, create_or_modify_pyi).
    field.preprocess = _path
    return field


def _path(payload: gradio.FileData | None) -> str | None:
    """Path of what was uploaded. Raises DataError for any other, whatever Gradio has looked at."""
    if payload is None:
        return None
    if not is_below(payload.path, Path(os.environ["GRADIO_TEMP_DIR"])):
        raise DataError("This was not uploaded here.")
    return str(payload.path)


@dataclass(frozen=True)
class _View:
    """A part of an output: how it is laid out, and what is put there."""

    make: Callable[[], gradio.components.Component]
    value: Callable[[Output], object]


def _segments(output: Output) -> str | None:
    if len(output["segments"]) < 2:
        return None  # which would be the answer once more
    rows = "".join(
        f"<tr><td>{_clock(one['start'])} – {_clock(one['end'])}</td><td>{_escape(one['text'])}</td></tr>"
        for one in output["segments"]
    )
    return f"<div class='segments'><table><tr><th>Time</th><th>Text</th></tr>{rows}</table></div>"


def _loop(output: Output) -> str | None:
    looped = output["repetition_loop"]
    return "Decoding went round in circles, so this text is not to be trusted." if looped else None


VIEWS: dict[str, _View] = {
    "top": _View(
        lambda: gradio.Label(label="Probabilities"),
        lambda output: {each["label"]: each["probability"] for each in output["top"]},
    ),
    "prediction": _View(
        lambda: gradio.Textbox(label="Answer", lines=6, max_lines=20, interactive=False, buttons=["copy"]),
        lambda output: _answer(output["prediction"]),
    ),
    "repetition_loop": _View(lambda: gradio.Markdown(visible=False), _loop),
    "segments": _View(lambda: gradio.HTML(visible=False), _segments),
}
"""By the keys of an output, in the order of the page."""


def _answer(prediction: object) -> object:
    return (", ".join(prediction) or "none of its classes") if isinstance(prediction, list) else prediction


def _shown_keys(features: datasets.Features) -> list[str]:
    """Parts of an answer; a class stands among the likeliest anyway."""
    hidden = {"prediction"} if "top" in features and not isinstance(features["prediction"], datasets.List) else set()
    return [name for name in VIEWS if name in features.keys() - hidden]


class _Panel:
    """One model's output, or the sentence that says why there is none."""

    def __init__(self, keys: list[str], heading: str, css_class: str) -> None:
        self.views = [VIEWS[name] for name in keys]
        gradio.Markdown(f"**{heading}**")
        self.error = gradio.HTML(visible=False, elem_classes=[f"{css_class}-problem"])
        self.parts = [view.make() for view in self.views]
        for part, name in zip(self.parts, keys, strict=True):
            part.elem_classes = [f"{css_class}-{name}"]

    @property
    def components(self) -> list[gradio.components.Component]:
        return [self.error, *self.parts]

    def updates(self, output: Output | None, error: str | None = None) -> list[object]:
        shown = error and f"<div class='problem'><p>{_escape(error)}</p></div>"
        found = [gradio.update(value=shown, visible=bool(error))]
        for view, part in zip(self.views, self.parts, strict=True):
            value = view.value(output) if output else None
            hides = isinstance(part, (gradio.Markdown, gradio.HTML))
            found.append(gradio.update(value=value, visible=bool(value)) if hides else gradio.update(value=value))
        return found

    def predict(self, demo: Demo, value: str, *, pretrained: bool) -> list[object]:
        try:
            output = demo.predict(value, pretrained=pretrained)
            silent = output["prediction"] == ""
            return self.updates(output, "The model had nothing to say to this." if silent else None)
        except TltasksError as error:
            return self.updates(None, sentence(error))


# ------------------------------------------------------------------------------------------------- page


def build(demo: Demo, examples: list[str]) -> gradio.Blocks:
    """Lay out the page, which is not yet served."""
    with gradio.Blocks(title=demo.title, analytics_enabled=False) as page:
        gradio.Markdown(f"# {demo.title}\n\n{demo.summary()}")
        with gradio.Tab("Try it"):
            _lay_out_trial(demo, examples)
        with gradio.Tab("About the model"):
            quality, card = demo.quality(), demo.card()
            if quality:
                gradio.Markdown(f"## Measured quality\n\n{quality}\n\n---", elem_classes=["card"])
            gradio.Markdown(card or "This model came without the results of a run.", elem_classes=["card"])
    return page


def _lay_out_trial(demo: Demo, examples: list[str]) -> None:
    task = demo.saved.task
    given, keys = TASKS[task.tag].input, _shown_keys(task.output_features)
    is_text = given.kind == "text"
    with gradio.Row():
        with gradio.Column(min_width=300):
            entry = _input_field(given)
            entry.elem_classes = ["entry"]
            button = gradio.Button("Answer", variant="primary") if is_text else None
            both = gradio.Checkbox(
                label=f"Compare with the untouched checkpoint ({demo.origin})", visible=demo.origin is not None
            )
        with gradio.Column(min_width=300):
            own = _Panel(keys, "This model", "own")
        with gradio.Column(min_width=300, visible=False) as side:
            other = _Panel(keys, f"Untouched checkpoint ({demo.origin})", "other")
    if examples:
        gradio.Examples([[each] for each in examples], entry, cache_examples=False, label="From the test set")

    def answer(value: str | None, compared: bool) -> list[object]:
        if value is None or not value.strip():
            error = "Enter a text first." if is_text else None
            return [gradio.update(visible=compared), *own.updates(None, error), *other.updates(None)]
        theirs = other.predict(demo, value, pretrained=True) if compared else other.updates(None)
        return [gradio.update(visible=compared), *own.predict(demo, value, pretrained=False), *theirs]

    gradio.on(
        [button.click if button else entry.change, both.change],
        answer,
        inputs=[entry, both],
        outputs=[side, *own.components, *other.components],
        api_name="answer",
        concurrency_limit=1,  # one model, and one input at a time
        trigger_mode="always_last",
    )


def _escape(text: str) -> str:
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


def launch(
    demo: Demo, *, host: str | None, port: int | None, names: Sequence[str] = (), limits: Limits = DEFAULT_LIMITS
) -> gradio.Blocks:
    """Serve the page in threads of this process, at its `local_url`; on loopback unless told otherwise.

    It answers to the host that it is bound to and to `names`; all files of it are below a folder that ends with it.
    """
    uploads = Uploads(Path(tempfile.mkdtemp(prefix="tltasks-")), limits)
    os.environ["GRADIO_TEMP_DIR"] = str(uploads.folder)  # else one for all that use Gradio here
    (uploads.folder / "examples").mkdir()
    page = build(demo, demo.examples(uploads.folder / "examples"))
    page.queue(max_size=32, api_open=False)
    bound = host or os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1"
    gate = Middleware(Gate, uploads=uploads, hosts=[bound, *names], page=page)
    try:
        page.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            show_error=False,
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            css=CSS,
            app_kwargs={"middleware": [gate], **lifespan(uploads)},
        )
    except OSError as error:
        shutil.rmtree(uploads.folder, ignore_errors=True)
        why = "the port is taken" if "empty port" in str(error) else error
        raise RecipeError(f"demo: cannot serve there ({why}); name another --port or --host.") from error
    return page
