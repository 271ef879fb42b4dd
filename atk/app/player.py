"""The HTML of a view: its picture, over which a line moves while its sound plays."""

import base64
import html

from atk.app.views import View

CSS = """
.atk-player figcaption { font-weight: 600; margin-bottom: 0.4em; overflow-wrap: anywhere; }
.atk-picture { position: relative; cursor: pointer; max-width: 1100px; }
.atk-picture img { width: 100%; display: block; background: white; }
.atk-cursor { position: absolute; top: 0; bottom: 0; width: 2px; background: #e6194b; pointer-events: none; }
.atk-player audio { width: 100%; max-width: 1100px; margin-top: 0.5em; }
"""

# Media events do not bubble, hence `true`: listeners on the element see them on the way down.
SCRIPT = """
const parts = (node) => {
  const box = node.closest('.atk-player');
  return {box, audio: box.querySelector('audio'), cursor: box.querySelector('.atk-cursor'),
          left: Number(box.dataset.left), right: Number(box.dataset.right), seconds: Number(box.dataset.seconds)};
};
const place = (node) => {
  const {audio, cursor, left, right, seconds} = parts(node);
  cursor.style.left = 100 * (left + (right - left) * Math.min(1, audio.currentTime / seconds)) + '%';
};
const follow = (audio) => {
  if (!audio.isConnected) return;
  place(audio);
  if (!audio.paused) requestAnimationFrame(() => follow(audio));
};
element.addEventListener('loadedmetadata', (event) => {
  event.target.currentTime = Number(parts(event.target).box.dataset.from);
  place(event.target);
}, true);
for (const name of ['play', 'seeked', 'pause']) {
  element.addEventListener(name, (event) => follow(event.target), true);
}
element.addEventListener('click', (event) => {
  const picture = event.target.closest('.atk-picture');
  if (!picture) return;
  const {audio, left, right, seconds} = parts(picture);
  const area = picture.getBoundingClientRect();
  const at = ((event.clientX - area.left) / area.width - left) / (right - left);
  audio.currentTime = seconds * Math.min(1, Math.max(0, at));
  audio.play();
});
"""


def player(view: View, autoplay: bool = False) -> str:
    """The HTML of a view. Names in it come from files, so they are escaped."""
    data = {
        "left": view.left,
        "right": view.right,
        "seconds": view.seconds,
        "from": view.moment - view.start,
    }
    attributes = " ".join(f'data-{name}="{value:.5f}"' for name, value in data.items())
    sound = '<audio controls preload="auto" src="{}"{}></audio>'.format(
        _inline(view.sound, "audio/flac"), " autoplay" if autoplay else ""
    )
    caption = f"<figcaption>{html.escape(view.title)}</figcaption>"
    picture = f'<div class="atk-picture">{image(view.picture, view.title)}<div class="atk-cursor"></div></div>'
    return f'<figure class="atk-player" {attributes}>{caption}{picture}{sound}</figure>'


def image(png: bytes, title: str) -> str:
    """The HTML of a picture."""
    return f'<img alt="{html.escape(title)}" src="{_inline(png, "image/png")}">'


def _inline(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
