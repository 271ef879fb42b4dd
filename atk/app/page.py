"""The tabs of the page and what their buttons do; the work itself is done by the other modules."""

import html
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atk.app.captions import four_captions
from atk.app.curves import draw_curves, read_curves
from atk.app.library import Library
from atk.app.messages import reporting
from atk.app.player import CSS, SCRIPT, image, player
from atk.app.searching import MOST_RESULTS, Answer, Hit, answer, clip_rows, moment_rows
from atk.app.views import view_of
from atk.eval.moments import MomentConfig
from atk.extras import optional_imports
from atk.models.caption_model import CaptionModel

with optional_imports:
    import gradio as gr

_ONE_AT_A_TIME: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
_UPLOAD_SECONDS = 3600  # after which an uploaded file is deleted


@dataclass(frozen=True)
class Contents:
    """What the page offers; None leaves out a tab.

    Args:
        name: of the model, for the title.
        library: what can be searched.
        moments: how moments are found.
        captioner: what writes captions.
        clip_seconds: length of the windows that are captioned.
        generation: `beams` and `generation` of `atk.eval.captioning.caption_file`.
        run: the run whose curves are drawn.
        tidy: called before an uploaded file is used, to delete older ones.
    """

    name: str
    library: Library | None = None
    moments: MomentConfig = field(default_factory=MomentConfig)
    captioner: CaptionModel | None = None
    clip_seconds: float = 0.0
    generation: dict[str, Any] = field(default_factory=dict)
    run: Path | None = None
    tidy: Callable[[], None] = lambda: None


def build_page(contents: Contents) -> "gr.Blocks":
    """The page, to be launched."""
    title = f"atk: {contents.name}"
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(60, _UPLOAD_SECONDS)) as page:
        gr.HTML(f"<h2>{html.escape(title)}</h2>")
        with gr.Tabs():
            if contents.library is not None:
                with gr.Tab("Search"):
                    _search_tab(contents, contents.library)
            if contents.captioner is not None:
                with gr.Tab("Captions"):
                    _caption_tab(contents, contents.captioner)
            if contents.run is not None:
                with gr.Tab("Training") as tab:
                    _training_tab(contents.run, page, tab)
    page.queue(max_size=32)
    return page


def _upload(label: str, name: str) -> "gr.Audio":
    """A field that takes a file; without the button that would share it with others."""
    return gr.Audio(sources=["upload"], type="filepath", label=label, editable=False, buttons=[], elem_id=name)


def _search_tab(contents: Contents, library: Library) -> None:
    state = gr.State(None, time_to_live=_UPLOAD_SECONDS)
    with gr.Row():
        with gr.Column(scale=3):
            query = gr.Textbox(label="Query", placeholder="glass breaks, then a dog barks", elem_id="atk-query")
            top = gr.Slider(1, MOST_RESULTS, 10, step=1, label="Results")
            button = gr.Button("Search", variant="primary", elem_id="atk-search")
        with gr.Column(scale=2):
            file = _upload("Search in a file of your own" if library.folder else "File to search in", "atk-file")
    with gr.Row():
        with gr.Column(scale=3):
            moments = _table("Moments", {"score": "15%", "recording": "40%", "time": "45%"}, "atk-moments")
        with gr.Column(scale=2, visible=library.folder is not None):
            clips = _table("Recordings", {"score": "25%", "recording": "75%"}, "atk-clips")
    shown = gr.HTML("", css_template=CSS, js_on_load=SCRIPT, elem_id="atk-view")

    def show(given: Answer, hit: Hit, autoplay: bool) -> str:
        return player(view_of(library.index(given.upload), library.model, given, hit), autoplay)

    @reporting
    def search(text: str, upload: str | None, count: float) -> tuple[Answer, list[list[str]], list[list[str]], str]:
        contents.tidy()
        given = answer(library, text or "", upload, int(count), contents.moments)
        best = show(given, given.moments[0], autoplay=False) if given.moments else "Nothing found."
        return given, moment_rows(given.moments), clip_rows(given.clips), best

    @reporting
    def show_moment(given: Answer | None, event: gr.SelectData) -> str:
        return "" if given is None else show(given, _selected(given.moments, event), autoplay=True)

    @reporting
    def show_clip(given: Answer | None, event: gr.SelectData) -> str:
        return "" if given is None else show(given, _selected(given.clips, event), autoplay=True)

    outputs = [state, moments, clips, shown]
    gr.on([button.click, query.submit], search, [query, file, top], outputs, api_name="search", **_ONE_AT_A_TIME)
    moments.select(show_moment, state, shown, api_name="show_moment", **_ONE_AT_A_TIME)
    clips.select(show_clip, state, shown, api_name="show_clip", **_ONE_AT_A_TIME)


def _table(label: str, widths: dict[str, int | str], name: str) -> "gr.Dataframe":
    """A table of text, with the headers and the widths of its columns."""
    return gr.Dataframe(
        headers=list(widths),
        column_widths=list(widths.values()),
        label=label,
        datatype="str",
        type="array",
        interactive=False,
        wrap=True,
        max_height=300,
        elem_id=name,
    )


def _selected(hits: list[Hit], event: "gr.SelectData") -> Hit:
    row = event.index[0] if isinstance(event.index, (list, tuple)) and event.index else None
    if not isinstance(row, int) or not 0 <= row < len(hits):
        raise ValueError("choose a row of the table")
    return hits[row]


def _caption_tab(contents: Contents, captioner: CaptionModel) -> None:
    with gr.Row():
        clip = _upload("Clip", "atk-clip")
        reference = _upload("Reference (optional)", "atk-reference")
    button = gr.Button("Caption", variant="primary", elem_id="atk-caption")
    rows = _table("Captions", {"of": "35%", "caption": "65%"}, "atk-captions")

    @reporting
    def caption(audio: str | None, other: str | None) -> list[list[str]]:
        contents.tidy()
        return four_captions(captioner, audio, other, contents.clip_seconds, contents.generation)

    button.click(caption, [clip, reference], rows, api_name="caption", **_ONE_AT_A_TIME)


def _training_tab(run: Path, page: "gr.Blocks", tab: "gr.Tab") -> None:
    button = gr.Button("Refresh", elem_id="atk-refresh")
    shown = gr.HTML("", css_template="img { max-width: 100%; }", elem_id="atk-curves")

    @reporting
    def draw() -> str:
        return image(draw_curves(read_curves(run), run.name), f"curves of {run.name}")

    gr.on([page.load, tab.select, button.click], draw, None, shown, api_name="curves", concurrency_limit=1)
