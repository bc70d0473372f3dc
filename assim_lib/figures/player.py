"""A moving picture in a page: a strip of frames, a button that stops it, and a slider; no file and no request."""

import base64
import hashlib
from collections.abc import Sequence
from html import escape
from io import BytesIO

from IPython.display import HTML
from PIL import Image

COLOURS = 24  # of the whole strip: all that there are, and the file is a third as large

# Whoever asked for less motion finds it at its last frame, standing still.
_PAGE = """\
<div id="{name}" style="max-width: {width}px; background: white; color: black">
<div style="overflow: hidden; aspect-ratio: {width} / {height}">
<img alt="{alt}" src="data:image/png;base64,{strip}" style="display: block; width: 100%; max-width: none">
</div>
<div style="display: flex; gap: 0.7em; align-items: center; padding: 0 0.5em 0.5em">
<button type="button" style="min-width: 5em; padding: 0.2em">Play</button>
<input type="range" min="0" max="{last}" value="{last}" aria-label="frame of the moving picture" style="flex: 1">
</div>
<script>
(() => {{
  const player = document.getElementById("{name}");
  const [strip, button, slider] = ["img", "button", "input"].map(part => player.querySelector(part));
  let timer = null;
  const show = () => {{ strip.style.transform = `translateY(${{-100 * slider.value / {frames}}}%)`; }};
  const step = () => {{ slider.value = (Number(slider.value) + 1) % {frames}; show(); }};
  const play = on => {{
    clearInterval(timer);
    timer = on ? setInterval(step, {milliseconds}) : null;
    button.textContent = on ? "Pause" : "Play";
  }};
  button.onclick = () => play(!timer);
  slider.oninput = () => {{ play(false); show(); }};
  show();
  play(!matchMedia("(prefers-reduced-motion: reduce)").matches);
}})();
</script>
</div>"""


def player(frames: Sequence[Image.Image], alt: str, milliseconds: int) -> HTML:
    """Show frames of one size one after the other.

    Args:
        alt: the picture in words, for readers who do not see it.
        milliseconds: how long each frame stays.
    """
    width, height = frames[0].size
    strip = Image.new("RGB", (width, height * len(frames)))
    for place, frame in enumerate(frames):
        strip.paste(frame, (0, place * height))
    file = BytesIO()
    strip.quantize(COLOURS).save(file, "PNG", optimize=True)
    picture = file.getvalue()
    return HTML(
        _PAGE.format(
            name=f"player-{hashlib.sha256(picture).hexdigest()[:12]}",
            width=width,
            height=height,
            alt=escape(alt),
            strip=base64.b64encode(picture).decode(),
            frames=len(frames),
            last=len(frames) - 1,
            milliseconds=milliseconds,
        )
    )
